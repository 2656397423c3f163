"""What a command checks before it imports torch and Ray, which takes seconds: limits, names and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ray_learngene.config import (
    AncestryConfig,
    BenchConfig,
    DataConfig,
    EvaluateConfig,
    ExpandConfig,
    ExportConfig,
    LimitsConfig,
    MeasureConfig,
    PlanConfig,
    PullConfig,
    SelectionConfig,
)
from ray_learngene.config.data import check_image_set
from ray_learngene.config.methods import check_method
from ray_learngene.config.numbers import parse_depths, parse_factors, parse_numbers
from ray_learngene.config.training import StoreConfig
from ray_learngene.errors import UserError
from ray_learngene.io.folders import EXPORT_MARK, MODEL_MARK, check_free
from ray_learngene.io.local import local_path
from ray_learngene.models.architectures import may_exist, no_architecture, no_model
from ray_learngene.models.budgets import Budget, parse_quantity

_STORED, _FOLDER = "store:ancestries/", "local-dir:"


def check_named(config: Any) -> None:
    """Check that limits and sizes can be read, that methods, options, images, folders and artefacts that are named
    exist, and that folders to write are free.

    The command checks all of it again, and more. Of a bucket it alone does, because a request costs.

    Raises:
        UserError: a limit or a size cannot be read, something is not there, or a folder is there and stays.
    """
    for text in (*_given(config, "method"), *(config.arms if isinstance(config, SelectionConfig) else ())):
        check_method(text)
    for name, arm in config.arms.items() if isinstance(config, BenchConfig) else ():
        try:
            check_method(arm.method)
        except UserError as error:
            raise UserError(f"arm {name!r}: {error}") from None
    if isinstance(config, DataConfig) and config.data:
        check_image_set(config.data)
    _check_architectures(config)
    budgets = [Budget.parse(text) for text in getattr(config, "budgets", None) or ()]
    if isinstance(config, LimitsConfig):
        budgets += [parse_quantity(quantity, text) for quantity, text in config.limits.items()]
    _check_sizes(config)
    _check_folders(config)
    # pull imports neither, and goes on without a trained descendant
    if not isinstance(config, StoreConfig) or isinstance(config, PullConfig) or "://" in config.store:
        return
    planned = isinstance(config, PlanConfig) and config.distill  # its learngene is still to be distilled
    learngenes = [] if planned else _given(config, "learngene", "start")
    ancestries = [one.removeprefix(_STORED) for one in _given(config, "ancestry", "source") if one.startswith(_STORED)]
    devices = {device for budget in budgets for device in budget.devices}
    if isinstance(config, ExpandConfig) and config.device:
        devices.add(config.device)
    if learngenes or ancestries or devices:
        from ray_learngene.store.store import Store
        from ray_learngene.store.timings import Timings

        store = Store.of(config)
        store.check(write=False)
        for name in learngenes:
            store.manifest("learngene", name)
        for name in ancestries:
            store.manifest("ancestry", name)
        for device in sorted(devices):
            Timings.load(store, device)


def _check_sizes(config: Any) -> None:
    for flag in ("depth", "depths"):
        if isinstance(text := getattr(config, flag, None), str):
            parse_depths(text, flag)
    for text in _given(config, "widths"):
        parse_numbers("widths", text)
    for flag in ("depth_factor", "width_factor"):
        for text in _given(config, flag):
            parse_factors(flag.replace("_", "-"), text)


def _check_folders(config: Any) -> None:
    """Check the folders of models that a command reads, and that those it writes are free."""
    given = [getattr(config, field, None) or "" for field in ("model", "ancestry", "source")]
    folders = [value.removeprefix(_FOLDER) for value in given if value.startswith(_FOLDER)]
    if isinstance(config, ExportConfig | EvaluateConfig):
        folders.append(config.model)
    if isinstance(config, MeasureConfig) and config.runtime == "torch":
        folders += config.models
    elif isinstance(config, MeasureConfig):
        _check_onnx(config.models)
    for folder in map(os.path.expanduser, folders):
        if not os.path.isfile(f"{folder}/{MODEL_MARK}"):
            missing = f"it has no {MODEL_MARK}" if os.path.isdir(folder) else "there is no such folder"
            raise UserError(f"{folder} is not a timm model folder: {missing}")
    if isinstance(config, ExportConfig):
        for out in config.outs.values():
            check_free(local_path(out), config.overwrite, EXPORT_MARK)
    if isinstance(config, ExpandConfig) and config.out and not config.many:
        check_free(local_path(config.out), config.overwrite, MODEL_MARK)


def _check_onnx(models: Sequence[str]) -> None:
    from ray_learngene.delivery.measure import Failed, onnx_file

    for text in models:
        try:
            if not os.path.isfile(f"{os.path.expanduser(text)}/{MODEL_MARK}"):
                onnx_file(text)
        except Failed as failed:
            raise UserError(str(failed)) from None


def _check_architectures(config: Any) -> None:
    for name in _given(config, "student"):
        if not may_exist(name.split(".")[0]):
            raise no_architecture(name)
    given = {field: getattr(config, field, None) for field in ("ancestry", "source")}
    if isinstance(config, AncestryConfig):
        given["model"] = config.model
    for field, value in given.items():
        if value and ":" not in value and not may_exist(value.split(".")[0]):
            raise no_model(value, f"--{field}")


def _given(config: Any, *fields: str) -> list[str]:
    return [value for name in fields if (value := getattr(config, name, None))]
