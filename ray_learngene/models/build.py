"""The timm model of a spec, and the spec of a timm model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ray_learngene.config.image import RGB, ImageShape
from ray_learngene.errors import UserError
from ray_learngene.models.families.made import made
from ray_learngene.models.meta import on_meta, require_memory_for
from ray_learngene.models.specs import Spec, spec_for

# timm's DeiT entry points set ImageNet's mean and standard deviation; keyword arguments set the size.
_ARCHITECTURES = {192: "deit_tiny_patch16_224", 384: "deit_small_patch16_224", 768: "deit_base_patch16_224"}


def timm_arguments(spec: Spec) -> dict[str, Any]:
    """Return the keyword arguments that make a timm entry point `spec`; exports store them as `model_args`."""
    if spec.architecture is not None:
        return dict(spec.arguments)
    return {
        "img_size": spec.image.size,
        **({} if spec.image.channels == RGB else {"in_chans": spec.image.channels}),
        "patch_size": spec.patch,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
        "mlp_ratio": spec.mlp_ratio,
        "class_token": False,
        "global_pool": "avg",
    }


def entry_point(spec: Spec) -> str:
    """Return the timm entry point that builds a spec's model."""
    return spec.architecture or _ARCHITECTURES.get(spec.width, "deit_small_patch16_224")


def build(spec: Spec, *, seed: int | None = None) -> Any:
    """Build the timm model of a spec, with timm's initialisation.

    The plain vision transformer averages its tokens, then normalises (`fc_norm`, eps 1e-6), then classifies.

    Args:
        seed: Seed of the initialisation; it leaves the global random generator unchanged. None uses the global one.

    Raises:
        UserError: this machine has not enough memory for it.
    """
    if torch.get_default_device().type != "meta":
        require_memory_for(meta_model(spec), str(spec))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return timm.create_model(entry_point(spec), num_classes=spec.classes, **timm_arguments(spec))


@lru_cache(maxsize=256)
def meta_model(spec: Spec) -> nn.Module:
    """Build a spec's model on the meta device, without stochastic depth; cached, so do not change it.

    Raises:
        UserError: timm refuses the size.
    """
    if spec.architecture is not None:
        return made(spec.architecture, {**spec.arguments, "num_classes": spec.classes}).model.requires_grad_(False)
    with on_meta():
        model: nn.Module = build(spec)
    return model


@lru_cache(maxsize=1024)
def shapes_of(spec: Spec) -> Mapping[str, torch.Size]:
    """Return the shapes of a spec's state dict by name; cached, as every step of a generated model needs them."""
    return {name: tensor.shape for name, tensor in meta_model(spec).state_dict().items()}


def head_names(spec: Spec) -> tuple[str, ...]:
    """Return the prefixes of the head's parameters."""
    if spec.architecture is None:
        return ("head.",)
    names = getattr(meta_model(spec), "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def build_with(spec: Spec, state: Mapping[str, torch.Tensor], *, seed: int = 0) -> nn.Module:
    """Build the timm model of a spec with these parameters, copied; the seed initialises those that are missing.

    Nothing is initialised only to be overwritten, which would take longer than all else for a large model.
    """
    with on_meta():
        model: nn.Module = build(spec)
    computed = any(module._non_persistent_buffers_set for module in model.modules())
    if computed or model.state_dict().keys() - state.keys():
        model = build(spec, seed=seed)
        model.load_state_dict({**model.state_dict(), **state})
    else:
        copies = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in state.items()}
        model.load_state_dict(copies, assign=True)
    return model


_NOT_OF_THE_SIZE = ("num_classes", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate")


def spec_of(model: nn.Module, *, fixed: bool = False) -> Spec:
    """Return the spec of a timm model, so that methods can start from a trained model.

    Args:
        fixed: Take a model whose depth no keyword of timm sets; see `spec_for`.

    Raises:
        UserError: the model was not built by a timm entry point that takes a depth, or was changed afterwards.
    """
    plain = _plain_spec(model)
    if plain is not None:
        return plain
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture")
    if not architecture:
        raise UserError(f"this {type(model).__name__} was not made by timm.create_model: its entry point is not known")
    given: dict[str, Any] = getattr(model, "_model_args", {})
    arguments = {name: value for name, value in given.items() if name not in _NOT_OF_THE_SIZE}
    # an architecture without an image size keeps that of its weights
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    image = None if "img_size" in arguments or not size else tuple(size[-2:])
    spec = spec_for(architecture, classes=int(getattr(model, "num_classes", 0)), image=image, fixed=fixed, **arguments)
    have = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if have != (want := shapes_of(spec)):
        odd = sorted(have.keys() ^ want.keys()) or [name for name in have if have[name] != want[name]]
        raise UserError(f"{architecture}: the model was changed after it was built; it differs in {odd[0]!r}")
    return spec


def _plain_spec(model: nn.Module) -> Spec | None:
    """Return the spec of a class-token-free, average-pooled vision transformer with GELU; None for any other model."""
    if not isinstance(model, VisionTransformer) or model.global_pool != "avg" or not len(model.blocks):
        return None
    embed: Any = model.patch_embed
    block: Any = model.blocks[0]
    act = getattr(getattr(block, "mlp", None), "act", None)
    if type(act) is not nn.GELU or not hasattr(block, "attn"):
        return None
    try:
        spec = Spec(
            width=model.embed_dim,
            depth=len(model.blocks),
            heads=block.attn.num_heads,
            image=ImageShape(embed.proj.in_channels, *embed.img_size),
            patch=embed.patch_size[0],
            classes=model.num_classes,
            mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        )
    except (ValueError, AttributeError):
        return None
    same = {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes_of(spec)
    return spec if same else None


@lru_cache(maxsize=256)
def is_plain(spec: Spec) -> bool:
    """Tell whether a spec's model is the plain vision transformer, whatever entry point makes it."""
    return spec.architecture is None or _plain_spec(meta_model(spec)) is not None


def under_entry_point_of(source: Spec, spec: Spec) -> Spec:
    """Return a spec of the plain vision transformer under another's entry point; any other spec as it is."""
    if spec.architecture == source.architecture or not (is_plain(source) and is_plain(spec)):
        return spec
    size = {name: getattr(spec, name) for name in ("width", "depth", "heads", "image", "patch", "classes", "mlp_ratio")}
    return source.replace(**size)
