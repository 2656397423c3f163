"""The sizes of one architecture that a user names: by a preset or a timm name, and by depths and widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_learngene.config.numbers import parse_depths, parse_factors, parse_numbers
from ray_learngene.config.student import StudentConfig
from ray_learngene.errors import UserError
from ray_learngene.models.costs import macs
from ray_learngene.models.image_fit import require_fit
from ray_learngene.models.specs import Spec, first_message, preset, spec_for
from ray_learngene.progress import counted


def factor_depths(source: Spec, factors: str) -> list[int | tuple[int, ...]]:
    """Return the depths that are a factor of the source's, stage by stage, rounded and at least 1."""
    each = source.depths or (source.depth,)
    found = [
        tuple(max(1, round(depth * factor)) for depth in each) for factor in parse_factors("depth-factor", factors)
    ]
    return [depths if source.depths else depths[0] for depths in dict.fromkeys(found)]


def student_spec(config: StudentConfig, *, classes: int | None = None, **changes: Any) -> Spec:
    """Return the spec of a preset or of a timm entry point, with some fields changed; None leaves a field unchanged.

    Args:
        classes: Size of the label set; default: what the preset or the entry point has.

    Raises:
        UserError: there is no such preset or timm model, or it has no such size.
    """
    changes = {"channels": config.in_chans, **changes}
    if config.student is None:
        return preset(str(config.preset), classes=classes, **changes)
    spec = spec_for(config.student, classes=classes, **config.student_args)
    spec = spec.replace(**{name: value for name, value in changes.items() if value is not None})
    require_fit(spec)
    macs(spec)  # timm builds models that cannot run, such as one whose heads do not divide its width
    return spec


def sizes_of(
    source: Spec,
    *,
    depths: str | None = None,
    widths: str | None = None,
    depth_factor: str | None = None,
    width_factor: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Spec]:
    """Return the specs of every width and depth, by default of depths 1 to the source's and of its width.

    Heads grow with the width, at the source's head size.

    Args:
        depths: Total depths, or depths of stages.
        depth_factor: Depths as factors of the source's, instead.
        width_factor: Widths as factors of the source's, instead.
        changes: Other fields of the spec, such as `classes` and `image`; None keeps the source's.

    Raises:
        UserError: a text cannot be read, or a size does not fit the head size, the patches or the images.
    """
    many_depths: list[int | tuple[int, ...]] = list(range(len(source.depths or (1,)), source.depth + 1))
    if depths or depth_factor:
        many_depths = parse_depths(depths) if depths else factor_depths(source, str(depth_factor))
    stages = len(source.depths or (1,))
    for each in many_depths:
        if isinstance(each, tuple) and len(each) != stages:
            raise UserError(
                f"--depths {depths}: {'-'.join(map(str, each))} names {counted(len(each), 'stage')}, "
                f"{source.architecture or 'the plain vision transformer'} has {stages}"
            )
    many_widths = parse_numbers("widths", widths) if widths else [source.width]
    head_size = source.width // source.heads
    odd = None if source.architecture else next((width for width in many_widths if width % head_size), None)
    if odd:
        raise UserError(f"--widths {widths}: {odd} is not a multiple of the head size, {head_size}")
    if width_factor:
        many_widths = [round(source.width * factor) for factor in parse_factors("width-factor", width_factor)]
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    try:
        if "image" in given and (resized := source.replace(image=given["image"])).image != source.image:
            require_fit(resized)
        return [
            source.replace(**_depth(depth), width=width, heads=max(1, width // head_size), **given)
            for width in many_widths
            for depth in many_depths
        ]
    except ValueError as error:
        flag = f"--image-size {given['image']}: " if "image" in given else ""
        raise UserError(f"{flag}{first_message(error)}") from None


def _depth(depth: int | tuple[int, ...]) -> dict[str, Any]:
    return {"depth": depth} if isinstance(depth, int) else {"depths": depth}


def outermost(specs: Sequence[Spec]) -> list[Spec]:
    """Return the shallowest of several sizes at each width, and the deepest at the smallest width.

    Who expands to these first finds early that a learngene does not grow to a width or a depth.
    """
    narrow = min(spec.width for spec in specs)
    shallowest = {spec.width: spec for spec in sorted(specs, key=lambda spec: -spec.depth)}
    deepest = max((spec for spec in specs if spec.width == narrow), key=lambda spec: spec.depth)
    return list(dict.fromkeys([*shallowest.values(), deepest]))


def size_name(spec: Spec) -> str:
    """Return a short name of a size among those of one architecture, as names of descendants hold it."""
    depth = ".".join(map(str, spec.depths)) if spec.depths else f"{spec.depth:02d}"
    return f"w{spec.width}-d{depth}"


def size_columns(spec: Spec) -> dict[str, Any]:
    """Return what a results table says of a size."""
    columns = spec.model_dump(include={"width", "depth", "heads", "image", "patch", "classes"})
    if spec.architecture is not None:
        stages = "-".join(map(str, spec.depths)) if spec.depths else None
        columns |= {"architecture": spec.architecture, "stages": stages}
    return columns
