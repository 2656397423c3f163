"""Whether the classes of an ancestry model are those of the images, in which order, and how that is known."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from timm.data import resolve_model_data_config

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config.data import Interpolation
from ray_learngene.config.image import RGB
from ray_learngene.data.class_names import order_of, timms_order
from ray_learngene.data.image_set import ImageSet, ImageSets, Labels, Subset
from ray_learngene.data.loader import eval_loader
from ray_learngene.data.reader import Policy, Reader
from ray_learngene.errors import UserError
from ray_learngene.models.device import gpu_allowed
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.progress import counted

log = logging.getLogger(__name__)

_IMAGES = 256  # on which top-1 is measured
_DEVIATIONS = 3  # of what chance explains

_measured: dict[tuple[str, str], tuple[Labels, Labels]] = {}  # by model and images: decisions and labels


def match_classes(
    ancestry: Ancestry,
    reference: str,
    data: str,
    sets: ImageSets,
    *,
    labelled: bool = True,
    unreadable: Policy = "fail",
) -> None:
    """Bring the answers of an ancestry model into the order of the images' classes.

    The same names in another order are mapped. Where a side has no names, top-1 on validation images tells whether the
    order is the same.

    Args:
        labelled: False refuses nothing, as labels are not used; what is measured is printed all the same.
        unreadable: What becomes of validation images that cannot be read.

    Raises:
        UserError: another number of classes, other names, or a top-1 that says that the order is another.
    """
    classes = sets.train.classes
    if ancestry.classes != len(classes):
        if not labelled:
            return
        raise UserError(
            f"--ancestry {reference} has {counted(ancestry.classes, 'class')}, --data {data} has {len(classes)}: "
            "fine-tune it on this data first (learngene ancestry --pretrained), or leave the labels out (--no-labels)"
        )
    if ancestry.labels:
        order = order_of(ancestry.labels, classes)
        if order == list(range(len(classes))) or not labelled:
            return
        if order is not None:
            ancestry.reorder(order, classes)
            log.info(f"--ancestry {reference} has the classes of --data {data} in another order: mapped by name")
            return
        first = next(
            index for index, pair in enumerate(zip(ancestry.labels, classes, strict=True)) if pair[0] != pair[1]
        )
        odd = (
            f"--ancestry {reference} calls class {first} {ancestry.labels[first]!r}, --data {data} calls "
            f"it {classes[first]!r}"
        )
        if not (_numbered(ancestry.labels) or _numbered(classes)):
            raise UserError(f"{odd}: they were not labelled alike; use the same label set, or --no-labels")
    else:
        odd = f"--ancestry {reference} names no classes"
    problem = _measure(ancestry, odd, sets.val, unreadable)
    if problem and labelled:
        raise UserError(problem)
    if problem:
        log.warning(f"{problem} (the labels are left out: going on)")


def _numbered(names: Sequence[str]) -> bool:
    """Return whether names are only the numbers of the classes, as where a table has no names."""
    return tuple(names) == tuple(map(str, range(len(names))))


def _measure(ancestry: Ancestry, odd: str, images: ImageSet, unreadable: Policy) -> str | None:
    """Print top-1 in the order of the images' classes; what is wrong where that order cannot be the model's."""
    decisions, labels = _decisions(ancestry, images, unreadable)
    timms = timms_order(images.classes)
    right = decisions == labels
    chance = _chance(decisions, labels)
    measured = f"{odd}: top-1 {_percent(right)} on {counted(len(labels), 'validation image')} in the order of --data"
    log.info(f"{measured} (chance: {100 * chance:.1f} %)")
    near_chance = _near(right, chance)
    if timms is not None:
        there = timms[decisions]
        other = there == labels
        if not _near(other, _chance(there, labels)) and _clearly_more(other, right):
            names = ", ".join(images.classes[index] for index in timms[:3])
            return (
                f"{measured}, {_percent(other)} in timm's order of class folders ({names}, ...): write that order into "
                "label_names of its config.json, or leave the labels out (--no-labels)"
            )
    if near_chance:
        tried = "" if timms is None else f", and {_percent(other)} in timm's order of class folders"
        return (
            f"{measured}{tried}, near chance: it was not trained for these classes; fine-tune it on this data "
            "(learngene ancestry --pretrained), or leave the labels out (--no-labels)"
        )
    return None


def _percent(right: np.ndarray) -> str:
    return f"{100 * right.mean():.1f} %"


def _chance(decisions: Labels, labels: Labels) -> float:
    """Return the top-1 of decisions that have nothing to do with the labels but their frequencies."""
    size = 1 + max(int(decisions.max()), int(labels.max()))
    shares = [np.bincount(each, minlength=size) / len(each) for each in (decisions, labels)]
    return float(shares[0] @ shares[1])


def _near(right: np.ndarray, chance: float) -> bool:
    images = len(right)
    return bool(right.sum() <= images * chance + _DEVIATIONS * math.sqrt(images * chance * (1 - chance)))


def _clearly_more(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether one set of answers to the same questions is better than another beyond chance."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained - lost > _DEVIATIONS * math.sqrt(gained + lost)


def _decisions(ancestry: Ancestry, images: ImageSet, unreadable: Policy) -> tuple[Labels, Labels]:
    """Return the model's decisions on some validation images, and their labels; on the CPU, as drivers open no GPU."""
    key = ancestry.sha256(), images.fingerprint
    if key not in _measured:
        step = max(1, len(images) // _IMAGES)
        some = Subset(images, np.arange(0, len(images), step)[:_IMAGES])
        data = resolve_model_data_config(ancestry.model)
        interpolation = data["interpolation"] if data["interpolation"] in get_args(Interpolation) else "bicubic"
        preprocessing = Preprocessing(
            image_size=ancestry.image._replace(channels=RGB),
            mean=ancestry.mean,
            std=ancestry.std,
            crop_pct=data["crop_pct"],
            interpolation=interpolation,
        )
        with gpu_allowed(False), torch.no_grad():
            loader = eval_loader(some, preprocessing, 32, reader=Reader(some, unreadable))
            batches = [(ancestry(pixels).argmax(dim=-1), labels) for pixels, labels in loader]
        decisions, labels = (torch.cat(each).numpy() for each in zip(*batches, strict=True))
        _measured[key] = decisions, labels
    return _measured[key]
