"""The head that descendants inherit: that of the same classes, in the order that their images count them."""

from __future__ import annotations

from ray_learngene.data.class_names import order_of
from ray_learngene.methods.base import Learngene


def for_classes(learngene: Learngene, classes: tuple[str, ...]) -> Learngene:
    """Return the learngene for these classes: its head is mapped by name, or dropped where names are others."""
    if learngene.labels == classes:
        return learngene
    order = order_of(learngene.labels, classes)
    return learngene.without_head() if order is None else learngene.reordered(order, classes)
