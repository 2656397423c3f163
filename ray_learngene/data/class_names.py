"""Names of classes: which are the same, and the orders in which this package, a model and timm count them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from timm.utils.misc import natural_key

from ray_learngene.data.image_set import Labels


def same_name(name: str) -> str:
    """Return what two spellings of one name have in common.

    On some file systems an accent is a character of its own.
    """
    return unicodedata.normalize("NFC", name)


def order_of(names: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Return the place in `names` of every class; None where these are not the same names."""
    places = {same_name(name): index for index, name in enumerate(names)}
    if len(places) < len(names) or sorted(places) != sorted(map(same_name, classes)):
        return None
    return [places[same_name(name)] for name in classes]


def timms_order(classes: Sequence[str]) -> Labels | None:
    """Our index of each of timm's classes, which counts folders 0, 1, 2, ..., 10; None where that is our order too."""
    try:
        names = sorted(classes, key=natural_key)
    except ValueError:  # digits of other scripts, which timm cannot count
        return None
    index = {name: number for number, name in enumerate(classes)}
    order = np.array([index[name] for name in names])
    return None if (order == np.arange(len(order))).all() else order
