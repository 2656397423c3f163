"""Which images a timm model takes: why it does not take a size, and the nearest sizes that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import torch
from timm.models import get_model_input_config
from torch import nn

from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError, reason_of
from ray_learngene.models.build import meta_model, timm_arguments
from ray_learngene.models.families.made import made
from ray_learngene.models.specs import Spec

_UNIT = 8  # sizes are tried in its multiples if a model has no patches
_DOUBLINGS = 6  # of the unit: multiples of 16, then of 32, and so on


class Misfit(NamedTuple):
    """Why a model does not take images of a shape."""

    what: str
    reason: str = ""  # timm's or torch's


def require_fit(spec: Spec) -> None:
    """Refuse images that the model of a timm entry point does not take; the entry point's own are taken as they are.

    Raises:
        UserError: names the nearest image sizes that fit.
    """
    if spec.architecture is None:
        return  # `Spec` checks it
    entry = made(spec.architecture, {}).model
    arguments = timm_arguments(spec)
    if spec.image == own_image(entry, spec.image.channels) and "patch_size" not in arguments:
        return
    try:
        found = misfit(meta_model(spec), spec.image)
    except UserError as error:
        if near := fitting(spec.architecture, arguments, spec.image):
            raise UserError(f"{spec.architecture} does not take images of {spec.image.words}{near}") from error
        raise
    if found is not None and (near := fitting(spec.architecture, arguments, spec.image)):
        raise UserError(f"{spec.architecture}: {found.what}{near}")


def misfit(model: nn.Module, image: ImageShape, *, cut: bool = False) -> Misfit | None:
    """Say why a timm model does not take images of a shape; None if it does. The model runs once, on one image.

    timm rounds the number of patches down: it leaves out pixels at the right and lower edge.

    Args:
        cut: It may do so. timm has weights for 384 px in patches of 14.
    """
    odd = [each for each, side in zip(patch_size(model), image.sides, strict=False) if side % each]
    if odd and not cut:
        return Misfit(f"image size {image.sides_text} is not divisible by patch size {odd[0]}")
    takes = get_model_input_config(model)
    if takes["fixed_input_size"] and image.sides != tuple(takes["input_size"][1:]):
        return Misfit(f"it takes images of {ImageShape.of(takes['input_size']).words}, not of {image.words}")
    training, device = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *image, device=device))
    except Exception as error:  # whatever the arithmetic of timm's classes happens to raise
        return Misfit(f"it does not run on images of {image.words}", reason_of(error, 200))
    finally:
        model.train(training)
    return None


def fitting(architecture: str, arguments: Mapping[str, Any], image: ImageShape) -> str:
    """Name the image sizes nearest to one that a timm model does not take, as the end of a message.

    Empty if the model does not run on its architecture's own images either: their size is not why.

    Args:
        arguments: Keywords of the entry point; those of the image are replaced.
    """

    def model_for(shape: ImageShape) -> nn.Module:
        sized = {"img_size": shape.size} if resizable else {}
        return made(architecture, {**arguments, **sized, "in_chans": shape.channels}).model

    def fits(shape: ImageShape, cut: bool = False) -> bool:
        try:
            return misfit(model_for(shape), shape, cut=cut) is None
        except UserError:
            return False

    try:
        entry = made(architecture, {})
        resizable = entry.arguments.get("img_size") is not None
        own = own_image(entry.model, image.channels)
        if not fits(own, cut=True):
            return ""
        unit = max(patch_size(model_for(own)), default=_UNIT)
    except UserError:
        return ""
    found = [_first(image, unit, larger, fits) for larger in (False, True)]
    square = image.height == image.width
    near = [shape.sides_text if square else f"{shape.height}x{shape.width}" for shape in found if shape]
    return f": choose {' or '.join(dict.fromkeys(near or [own.sides_text]))}"


def _first(image: ImageShape, unit: int, larger: bool, fits: Callable[[ImageShape], bool]) -> ImageShape | None:
    """Return the first shape that fits among the next multiples of a unit, of twice the unit, and so on."""
    shapes = dict.fromkeys(image.multiple(unit * 2**power, larger=larger) for power in range(_DOUBLINGS))
    return next((shape for shape in shapes if shape != image and fits(shape)), None)


def own_image(model: nn.Module, channels: int) -> ImageShape:
    """Return the shape of an architecture's own images, or of those that its weights were trained on."""
    settings: Any = getattr(model, "pretrained_cfg", {})
    return ImageShape.of(settings.get("input_size") or 224)._replace(channels=channels)


def patch_size(model: nn.Module) -> tuple[int, ...]:
    """Return the height and width of patches that do not overlap and are not padded; empty for other models."""
    embed: Any = getattr(model, "patch_embed", None)
    proj = getattr(embed, "proj", None)
    if not isinstance(proj, nn.Conv2d) or proj.kernel_size != proj.stride or any(proj.padding):
        return ()
    return () if getattr(embed, "dynamic_img_pad", False) else proj.stride
