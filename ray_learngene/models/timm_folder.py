"""timm's model folder (`config.json` + `model.safetensors`), the format of published models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt, ValidationError
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_model_input_config, save_for_hf
from torch import nn
from torchvision.transforms import Compose, Grayscale

from ray_learngene.config.documents import first_error
from ray_learngene.errors import UserError, reason_of
from ray_learngene.models.origin import Origin
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.terminal import one_line

log = logging.getLogger(__name__)

# what timm's settings say of where an architecture's own weights come from
_SOURCE_FACTS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
_DESCRIPTION = "Trained with ray_learngene; README.md says from what and on which images."


def export_timm(
    model: nn.Module,
    folder: Path,
    *,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    model_args: dict[str, Any] | None = None,
    tag: str | None = None,
    origin: Origin | None = None,
) -> None:
    """Write a model so that `timm.create_model("local-dir:FOLDER", pretrained=True)` gives equal logits.

    The preprocessing and the class names go into `config.json`, where timm's data configuration finds them.

    Args:
        tag: What timm calls these weights of the architecture, such as the artefact's name.
        origin: Of the weights; its licence goes into `config.json`.
    """
    data_config = {
        "input_size": tuple(preprocessing.image_size),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": "center",  # even if the model that training started from has another one
        "interpolation": preprocessing.interpolation,
    }
    provenance = {
        **dict.fromkeys(_SOURCE_FACTS),  # else timm copies those of the architecture's own weights
        "tag": tag,
        "license": origin.license if origin else None,
        "description": _DESCRIPTION,
    }
    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": list(labels), "pretrained_cfg": provenance},
        model_args=model_args,
        safe_serialization=True,
        data_config=data_config,
    )
    # safetensors makes a file that its owner alone may read; the folder is for a team
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def load_timm(folder: Path, **arguments: Any) -> nn.Module:
    """Load the model of a timm folder, with its weights.

    Args:
        arguments: Arguments of `timm.create_model`; another number of classes gives the model a fresh head.

    Raises:
        UserError: the folder is not a timm model folder, or its weights do not fit its configuration.
    """
    if not (folder / "config.json").is_file():
        missing = "it has no config.json" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder} is not a timm model folder: {missing}")
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors: pickled weights are not read")
    try:
        model = timm.create_model(f"local-dir:{folder}", **{"pretrained": True, **arguments})
        _Settings.model_validate(resolve_model_data_config(model))
        _run_once(model)
    except ValidationError as error:
        raise UserError(f"{folder}: config.json: {first_error(error)}") from None
    except Exception as error:  # timm has no error type of its own for a wrong configuration
        reason = one_line(reason_of(error))
        raise UserError(f"{folder} does not load as a timm model: {reason}") from error
    return model


class _Settings(BaseModel):
    """timm's data configuration of a model, as far as this package reads it."""

    input_size: tuple[PositiveInt, PositiveInt, PositiveInt]
    mean: tuple[FiniteFloat, ...] = Field(min_length=1)
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = Field(min_length=1)
    crop_pct: float = Field(gt=0, le=1)
    interpolation: str
    crop_mode: str


@torch.no_grad()
def _run_once(model: nn.Module) -> None:
    """Pass one image through a model, because timm builds models that cannot run, such as one of -3 heads."""
    training, classes = model.training, getattr(model, "num_classes", 0)
    output = model.eval()(torch.zeros(1, *get_model_input_config(model)["input_size"]))
    model.train(training)
    if classes and tuple(getattr(output, "shape", ())) != (1, classes):
        raise ValueError(f"it does not give one logit for each of its {classes} classes")


def labels_of(model: nn.Module) -> tuple[str, ...]:
    """Return the class names that a timm model carries, as a list or by class index; empty where it carries none.

    Another number of names than its head has classes names none of them, and is logged.
    """
    settings: Any = getattr(model, "pretrained_cfg", {})
    names = settings.get("label_names") or ()
    if not isinstance(names, list | tuple | Mapping):
        return ()
    if isinstance(names, Mapping):
        if all(isinstance(index, int) for index in names.values()):  # index by name
            names = {index: name for name, index in names.items()}
        try:
            by_index = {int(index): name for index, name in names.items()}
        except (TypeError, ValueError):
            return ()
        names = [by_index[index] for index in sorted(by_index)] if sorted(by_index) == [*range(len(by_index))] else ()
    classes = getattr(model, "num_classes", 0)
    if names and classes and len(names) != classes:
        log.warning("label_names in config.json has %d names for %d classes: left out", len(names), classes)
        return ()
    return tuple(map(str, names))


def transform_of(model: nn.Module) -> Callable[..., Any]:
    """Return the transform that makes the input of a timm model of a PIL image, as its folder says."""
    data = resolve_model_data_config(model)
    transform = create_transform(**data)
    return Compose([Grayscale(), transform]) if data["input_size"][0] == 1 else transform
