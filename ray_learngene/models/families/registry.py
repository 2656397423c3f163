"""The families by the names of timm's model classes."""

from __future__ import annotations

from torch import nn

from ray_learngene.models.families.base import Family
from ray_learngene.models.families.eva import Eva
from ray_learngene.models.families.hybrids import HeadsOutermost
from ray_learngene.models.families.made import made
from ray_learngene.models.families.swin import Swin, SwinV2
from ray_learngene.models.families.vit import DecomposedPositionViT

_FAMILIES: tuple[type[Family], ...] = (DecomposedPositionViT, Eva, Swin, SwinV2, HeadsOutermost)
_BY_CLASS = {name: family() for family in _FAMILIES for name in family.classes}
_DEFAULT = Family()


def family_of(architecture: str) -> Family:
    """Return the family of a timm entry point; the default one for a class that no family names.

    Raises:
        UserError: timm has no such entry point, or refuses the arguments.
    """
    return family_of_model(made(architecture, {}).model)


def family_of_model(model: nn.Module) -> Family:
    """Return the family of a timm model."""
    return _BY_CLASS.get(type(model).__name__, _DEFAULT)
