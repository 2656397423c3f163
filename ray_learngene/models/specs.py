"""Specs (model sizes), the presets, and the plain timm `VisionTransformer` of a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from pydantic import Field, model_validator
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ray_learngene.config import Config
from ray_learngene.config.presets import PRESET_SIZES
from ray_learngene.errors import UserError

# timm's DeiT entry points set ImageNet's mean and standard deviation; keyword arguments set the size.
_ARCHITECTURES = {192: "deit_tiny_patch16_224", 384: "deit_small_patch16_224", 768: "deit_base_patch16_224"}


class Spec(Config):
    """The size of a class-token-free, average-pooled vision transformer."""

    width: int = Field(ge=1, description="embedding dimension")
    depth: int = Field(ge=1, description="number of blocks (layers)")
    heads: int = Field(ge=1, description="attention heads; width / heads is the head size")
    image: int = Field(ge=1, description="input height and width in pixels")
    patch: int = Field(ge=1, description="patch height and width in pixels")
    classes: int = Field(ge=0, description="size of the label set; 0: a model of features, without a head")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over the width")

    @model_validator(mode="after")
    def _divisible(self) -> Spec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.image % self.patch:
            below = self.image // self.patch * self.patch
            fitting = " or ".join(str(size) for size in (below, below + self.patch) if size)
            raise ValueError(f"image size {self.image} is not divisible by patch size {self.patch}: choose {fitting}")
        return self

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio)

    def replace(self, **changes: Any) -> Spec:
        """Return a copy with some fields changed, validated again."""
        return Spec(**{**self.model_dump(), **changes})

    def __str__(self) -> str:
        return f"width {self.width}, depth {self.depth}, {self.heads} heads, {self.image} px / patch {self.patch}"


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
    """What is wrong with a spec, without the other lines of pydantic's error."""
    errors = getattr(error, "errors", None)
    return errors()[0]["msg"].removeprefix("Value error, ") if errors else str(error)


def timm_arguments(spec: Spec) -> dict[str, Any]:
    """Return the keyword arguments that make a timm DeiT entry point `spec`; exports store them as `model_args`."""
    return {
        "img_size": spec.image,
        "patch_size": spec.patch,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
        "mlp_ratio": spec.mlp_ratio,
        "class_token": False,
        "global_pool": "avg",
    }


def build(spec: Spec, *, seed: int | None = None) -> VisionTransformer:
    """Build the plain timm model of a spec, with timm's initialisation (truncated normal 0.02, biases 0).

    Tokens are averaged, then normalised (`fc_norm`, eps 1e-6), then classified.

    Args:
        seed: Seed of the initialisation; it leaves the global random generator unchanged. None uses the global one.
    """
    architecture = _ARCHITECTURES.get(spec.width, "deit_small_patch16_224")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = timm.create_model(architecture, num_classes=spec.classes, **timm_arguments(spec))
    assert isinstance(model, VisionTransformer)
    return model


def build_with(spec: Spec, state: Mapping[str, torch.Tensor], *, seed: int = 0) -> VisionTransformer:
    """Build the plain timm model of a spec with these parameters, copied; the seed initialises those that are missing.

    Nothing is initialised only to be overwritten, which would take longer than all else for a large model.
    """
    with torch.device("meta"):
        model = build(spec)
    computed = any(module._non_persistent_buffers_set for module in model.modules())
    if computed or model.state_dict().keys() - state.keys():
        model = build(spec, seed=seed)
        model.load_state_dict({**model.state_dict(), **state})
    else:
        model.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
    return model


def spec_of(model: nn.Module) -> Spec:
    """Return the spec of a timm model, so that methods can start from a trained model.

    Raises:
        UserError: the model is not the plain vision transformer of any spec (no class token, tokens averaged).
    """
    why = "a learngene is extracted from a class-token-free, average-pooled vision transformer"
    if not isinstance(model, VisionTransformer):
        raise UserError(f"{why}; this model is a {type(model).__name__}")
    embed: Any = model.patch_embed
    block: Any = model.blocks[0]
    spec = Spec(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        image=embed.img_size[0],
        patch=embed.patch_size[0],
        classes=model.num_classes,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
    )
    with torch.device("meta"):
        plain = build(spec).state_dict()
    if model.global_pool != "avg" or type(block.mlp.act) is not nn.GELU:
        raise UserError(
            f"{why} with GELU; this one pools by {model.global_pool!r}, with {type(block.mlp.act).__name__}"
        )
    have = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if have != {name: tensor.shape for name, tensor in plain.items()}:
        odd = sorted(have.keys() ^ plain.keys()) or [name for name in have if have[name] != plain[name].shape]
        raise UserError(f"{why}; this model differs in {odd[0]!r} (build it with class_token=False, global_pool=avg)")
    return spec


def set_drop_path(model: VisionTransformer, rate: float) -> None:
    """Set a model's stochastic depth, linear from 0 at the first block to `rate` at the last."""
    rates: Sequence[float] = calculate_drop_path_rates(rate, len(model.blocks))  # type: ignore[assignment]
    for block, block_rate in zip(model.blocks, rates, strict=True):
        block.drop_path1 = DropPath(block_rate) if block_rate else nn.Identity()
        block.drop_path2 = DropPath(block_rate) if block_rate else nn.Identity()
