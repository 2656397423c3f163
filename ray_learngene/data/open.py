"""Any image set by its name: the one place that knows all kinds."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ray_learngene.config import DataConfig
from ray_learngene.config.data import no_image_set
from ray_learngene.data.card import stated_license
from ray_learngene.data.formats.builtin import open_cifar10, open_digits
from ray_learngene.data.formats.files import left_out, subfolders
from ray_learngene.data.formats.folder import FolderSet, open_any_folder, open_folder
from ray_learngene.data.formats.parquet import NoParquet, open_parquet
from ray_learngene.data.formats.remote_folder import local_copy
from ray_learngene.data.formats.split_names import split_of
from ray_learngene.data.formats.timm_sets import open_timm_sets
from ray_learngene.data.image_set import ImageSets, Report, Subset, check_splits, hold_out, refuse, share_of
from ray_learngene.errors import UserError


def open_image_sets(config: DataConfig, report: Report = refuse, *, labelled: bool | None = None) -> ImageSets:
    """Open the training and the validation split of `config.data`.

    Args:
        report: Is told what is wrong with classes and labels; the default ends with the first such problem.
        labelled: Labels are used, so that there must be two classes; default: what the configuration says.

    Raises:
        UserError: there is no such set, or its labels or splits are not usable; one line that names the place.
    """
    labelled = config.reads_labels if labelled is None else labelled
    sets = _open(config, report, labelled)
    notes = [_hidden_by_a_name(config.data), sets.note]
    if config.validate_on == "holdout":
        notes.append(
            f"validating on {100 * config.holdout:g} % per class held out of the training split of {config.data}"
        )
        sets = hold_out(sets.train, config.holdout)
    train, val = share_of(sets.train, config.train_share), share_of(sets.val, config.val_share)
    license = None if _is_named(config.data) else stated_license(config.data)
    sets = replace(sets, train=train, val=val, note="\n".join(filter(None, notes)) or None, license=license)
    check_splits(sets, config.data, labelled=labelled, report=report)
    return sets


def _is_named(data: str) -> bool:
    return data in ("digits", "cifar10") or data.startswith(("torch/", "hfds/"))


def _hidden_by_a_name(data: str) -> str | None:
    """Return what to say where a local folder has the name of a set that is known by name."""
    if not (_is_named(data) and os.path.exists(data)):
        return None
    return f"--data {data} is the known set of that name, not the folder {data} here: write ./{data} for the folder"


def _open(config: DataConfig, report: Report, labelled: bool) -> ImageSets:
    data = config.data
    validate = config.validate_on == "val"
    if data == "digits":
        return open_digits()
    if data == "cifar10":
        return open_cifar10(config.data_dir)
    if data.startswith(("torch/", "hfds/")):
        return open_timm_sets(
            data,
            config.data_dir,
            holdout=config.holdout,
            image_column=config.image_column,
            label_column=config.label_column,
            validate=validate,
        )
    if data.startswith("wds/"):
        raise UserError(
            f"{data} is a stream without random access: run `learngene data convert --data {data} --out FOLDER`"
        )
    path = os.path.abspath(os.path.expanduser(data))  # workers run in other folders
    if "://" in data:
        with suppress(NoParquet):
            return open_parquet(config)
        copy, note = local_copy(data, config.cache_gb * 1e9)
        return _open_copy(str(copy), note, config, report, labelled)
    if data.endswith(".parquet") or _holds_parquet(Path(path)):
        return open_parquet(config)
    if os.path.isdir(path):
        if not subfolders(path) and next(Path(path).glob("*.tar"), None):
            raise UserError(f"{data} holds tar files: run `learngene data convert --data wds/{data} --out FOLDER`")
        return _open_folder(path, config, report, labelled)
    raise no_image_set(data)


def _open_copy(copy: str, note: str | None, config: DataConfig, report: Report, labelled: bool) -> ImageSets:
    """Open the local copy of a folder; messages name its address, not the copy."""

    def named(text: str) -> str:
        return text.replace(copy, config.data.rstrip("/"))

    try:
        sets = _open_folder(copy, config, lambda text: report(named(text)), labelled)
    except UserError as error:
        raise UserError(named(str(error))) from None
    for images in (sets.train, sets.val):
        while isinstance(images, Subset):
            images = images.whole
        if isinstance(images, FolderSet):
            images.place = named(images.root)
    return replace(sets, note="\n".join(filter(None, (named(sets.note or ""), note))) or None)


def _open_folder(path: str, config: DataConfig, report: Report, labelled: bool) -> ImageSets:
    validate = config.validate_on == "val"
    if not labelled:
        return open_any_folder(path, config.holdout, validate=validate)
    return open_folder(path, config.holdout, validate=validate, report=report)


def _holds_parquet(folder: Path) -> bool:
    """Return whether a folder, its folders, or folders of splits in those (the Hub's layout) hold Parquet files."""
    if any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")):
        return True
    deeper = (path.relative_to(folder).parts for path in folder.glob("*/*/*.parquet"))
    return any((split_of(parts[1]) or "=" in parts[1]) and not left_out(parts[0]) for parts in deeper)
