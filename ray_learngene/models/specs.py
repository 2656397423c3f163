"""Specs (model sizes) and the presets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
from pydantic import Field, ValidationError, model_serializer, model_validator
from torch import nn

from ray_learngene.config.base import Config
from ray_learngene.config.documents import first_error
from ray_learngene.config.image import RGB, ImageShape, Shape
from ray_learngene.config.presets import PRESET_SIZES
from ray_learngene.errors import UserError
from ray_learngene.models.families.base import Family
from ray_learngene.models.families.made import Arguments, made
from ray_learngene.models.families.registry import family_of, family_of_model
from ray_learngene.models.families.size import Size, resized
from ray_learngene.progress import counted

_MOST = 10_000_000  # of any number of a spec; what is above is no size


class Spec(Config):
    """The size of a model: of a timm entry point, or of a class-token-free, average-pooled vision transformer.

    For an entry point, `arguments` decide the model. The other fields describe it: `depth` is the sum over its stages,
    `width` and `heads` are those of its first stage. Make one with `spec_for`.
    """

    width: int = Field(ge=1, le=_MOST, description="embedding dimension")
    depth: int = Field(ge=1, le=10_000, description="number of blocks (layers)")
    heads: int = Field(ge=1, le=_MOST, description="attention heads; width / heads is the head size")
    image: Shape = Field(description="shape of the images: channels, height and width")
    patch: int = Field(ge=1, le=_MOST, description="patch height and width in pixels")
    classes: int = Field(ge=0, le=_MOST, description="size of the label set; 0: a model of features, without a head")
    mlp_ratio: float = Field(4.0, gt=0, le=1000, description="hidden width of the MLP over the width")
    architecture: str | None = Field(None, description="timm entry point; None: the plain vision transformer")
    arguments: dict[str, Any] = Field({}, description="keywords of the entry point that differ from its own")
    depths: tuple[int, ...] | None = Field(None, description="blocks of each stage, if there are several")

    @model_validator(mode="after")
    def _divisible(self) -> Spec:
        if self.architecture is not None:
            return self
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if any(side % self.patch for side in self.image.sides):
            near = dict.fromkeys(self.image.multiple(self.patch, larger=larger).sides_text for larger in (False, True))
            raise ValueError(
                f"image size {self.image.sides_text} is not divisible by patch size {self.patch}: "
                f"choose {' or '.join(near)}"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Callable[[Spec], dict[str, Any]]) -> dict[str, Any]:
        """Leave out the fields of entry points, so that plain specs keep their fingerprints."""
        fields = handler(self)
        for name in ("architecture", "arguments", "depths"):
            if not fields.get(name):
                fields.pop(name, None)
        return fields

    def __hash__(self) -> int:
        return hash((self.width, self.depth, self.heads, self.image, self.classes, self.architecture, self.depths))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in height and in width."""
        return self.image.height // self.patch, self.image.width // self.patch

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def layers(self) -> str:
        """The depth, or the depths of its stages, as a text such as 3-3-9-3."""
        return "-".join(map(str, self.depths)) if self.depths else str(self.depth)

    def replace(self, **changes: Any) -> Spec:
        """Return a copy with some fields changed, validated again.

        An `image` without channels, such as 224 or 256x128, keeps the present ones; `channels` changes them.

        Raises:
            ValueError: the plain vision transformer has no such size.
            UserError: the entry point has no such size.
        """
        if "image" in changes or "channels" in changes:
            channels = changes.pop("channels", None)
            changes["image"] = self.image.changed(changes.get("image"), channels)
        if self.architecture is None:
            return Spec(**{**self.model_dump(), **changes})
        return _resized(self, changes)

    def __str__(self) -> str:
        name = f"{self.architecture}: " if self.architecture else ""
        heads = counted(self.heads, "head")
        return f"{name}width {self.width}, depth {self.layers}, {heads}, {self.image.words} / patch {self.patch}"


PRESETS: dict[str, Spec] = {name: Spec(**size._asdict()) for name, size in PRESET_SIZES.items()}


def preset(name: str, **changes: Any) -> Spec:
    """Return a preset with some fields changed; None leaves a field unchanged.

    If the width changes and `heads` is not given, the number of heads follows at the preset's head size.

    Raises:
        UserError: there is no such preset, or the changed spec is invalid.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    changes = {field: value for field, value in changes.items() if value is not None}
    if "width" in changes and "heads" not in changes:
        head_size = PRESETS[name].width // PRESETS[name].heads
        if changes["width"] % head_size:
            raise UserError(f"width {changes['width']} is not a multiple of preset {name!r}'s head size, {head_size}")
        changes["heads"] = changes["width"] // head_size
    try:
        return PRESETS[name].replace(**changes)
    except ValueError as error:
        raise UserError(f"preset {name!r} with {changes}: {first_message(error)}") from None


def first_message(error: ValueError) -> str:
    """Return what is wrong with a spec, without the other lines of pydantic's error."""
    return first_error(error) if isinstance(error, ValidationError) else str(error)


def spec_for(
    architecture: str, *, classes: int | None = None, image: Any = None, fixed: bool = False, **arguments: Any
) -> Spec:
    """Return the spec of a timm entry point with keyword arguments.

    Args:
        classes: Size of the label set; default: the entry point's.
        image: Size of the images, such as 224 or 256x128; default: the entry point's.
        fixed: Take an architecture whose depth no keyword sets: its spec has depth 1, and no other size.

    Raises:
        UserError: timm has no such entry point, refuses the arguments, or takes no depth for it.
    """
    arguments = _as_json(architecture, arguments)
    # what `meta_model` builds for the spec, so that it is built once
    model = made(architecture, arguments if classes is None else {**arguments, "num_classes": classes})
    family = family_of_model(model.model)
    if family.fixed(model.arguments) and not fixed:
        raise _no_depth(architecture)
    found = family.size(model.arguments)
    settings: Any = getattr(model.model, "pretrained_cfg", {})
    classes = int(getattr(model.model, "num_classes", 0)) if classes is None else classes
    own = ImageShape.of(settings.get("input_size") or 224)
    try:
        shape = own.changed(found.image or arguments.get("img_size"), arguments.get("in_chans"))
    except ValueError as error:
        raise UserError(f"{architecture}: img_size {arguments.get('img_size')}: {error}") from None
    if arguments.get("global_pool") == "":
        raise UserError(f"{architecture}: without pooling it gives a vector for each patch: leave global_pool out")
    try:
        spec = _described(architecture, arguments, found, classes, shape, model.model)
    except ValidationError as error:
        raise UserError(f"{architecture}: {first_error(error)}") from None
    if image is None and not arguments:
        return spec
    return spec.replace(**({} if image is None else {"image": image}))  # without arguments that change nothing


def _no_depth(architecture: str) -> UserError:
    return UserError(
        f"{architecture}: timm takes no depth for it; use it as a teacher (--ancestry), or at its own size "
        "(extract --method pretrained)"
    )


def _described(
    architecture: str, arguments: Arguments, size: Size, classes: int, image: ImageShape, model: nn.Module
) -> Spec:
    width = size.widths[0] if size.widths else int(getattr(model, "num_features", 1))
    if size.heads and width // size.heads[0] % 4 and getattr(model, "rope", None) is not None:
        raise UserError(
            f"{architecture}: rotary positions need a head size that is a multiple of 4, not {width // size.heads[0]} "
            f"(width {width} with {size.heads[0]} heads)"
        )
    return Spec(
        width=width,
        depth=sum(size.depths),
        heads=size.heads[0] if size.heads else 1,
        image=image,
        patch=size.patch,
        classes=classes,
        mlp_ratio=size.mlp_ratio or 4.0,
        architecture=architecture,
        arguments=arguments,
        depths=size.depths if len(size.depths) > 1 else None,
    )


def _as_json(architecture: str, arguments: Mapping[str, Any]) -> Arguments:
    try:
        found: Arguments = json.loads(json.dumps(dict(arguments)))
    except TypeError as error:
        raise UserError(f"{architecture}: an argument of the model is no plain value ({error})") from None
    return found


def size_of(spec: Spec) -> Size:
    """Return the size of an entry point's spec, stage by stage."""
    assert spec.architecture is not None
    return family_of(spec.architecture).size(_constructor_arguments(spec.architecture, spec.arguments))


def _constructor_arguments(architecture: str, arguments: Arguments) -> Arguments:
    """Return what the constructor gets: the entry point's own arguments, and over them those that are given."""
    return {**made(architecture, {}).arguments, **arguments}


def _resized(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    assert spec.architecture is not None
    family, own = family_of(spec.architecture), made(spec.architecture, {})
    image: ImageShape = changes.get("image", spec.image)
    size = resized(size_of(spec), **{**{k: v for k, v in changes.items() if k != "classes"}, "image": image.sides})
    if family.fixed(own.arguments) and sum(size.depths) > 1:
        raise _no_depth(spec.architecture)
    if not size.widths and changes.get("width", spec.width) != spec.width:
        raise UserError(f"{spec.architecture}: timm takes no width for it; its own is {spec.width}")
    keywords = _size_keywords(family, own.arguments, size)
    others = {name: value for name, value in spec.arguments.items() if name not in keywords}
    present = {**own.arguments, **spec.arguments}
    arguments = {
        **others,
        **family.arguments(own.arguments, size),
        **family.block_arguments(own.arguments, present, size),
        **({} if image.channels == own.arguments.get("in_chans", RGB) else {"in_chans": image.channels}),
    }
    try:
        return _described(spec.architecture, arguments, size, changes.get("classes", spec.classes), image, own.model)
    except ValidationError as error:
        raise UserError(f"{spec.architecture}: {first_error(error)}") from None


def _size_keywords(family: Family, arguments: Arguments, size: Size) -> set[str | None]:
    """Return the keywords whose values a size holds."""
    keywords = {family.keyword(kind, arguments) for kind in ("depth", "width", "heads")}
    keywords |= {"patch_size", "in_chans", *family.per_block}
    return keywords | ({"mlp_ratio"} if size.mlp_ratio else set()) | ({"img_size"} if size.image else set())
