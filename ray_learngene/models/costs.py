"""Costs of a spec: exact parameters and MACs, estimated memory.

MACs are multiply-accumulates of one image's forward pass: convolution, linear layers and the two attention products. As
in the papers' tables, norms, activations and additions are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError, reason_of
from ray_learngene.models.blocks import blocks_in_order
from ray_learngene.models.build import build, meta_model
from ray_learngene.models.meta import on_meta, require_memory
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted

_BYTES = 4  # per fp32 weight, gradient or moment


def parameters(spec: Spec) -> int:
    """Count the parameters of the spec's timm model, exactly."""
    if spec.architecture is not None:
        return sum(parameter.numel() for parameter in meta_model(spec).parameters())
    width, hidden = spec.width, spec.hidden
    block = (
        2 * 2 * width
        + (3 * width * width + 3 * width)
        + (width * width + width)
        + (2 * width * hidden + hidden + width)
    )
    patch_embed = spec.image.channels * spec.patch**2 * width + width
    return patch_embed + spec.tokens * width + spec.depth * block + 2 * width + (width + 1) * spec.classes


def macs(spec: Spec) -> int:
    """Count the multiply-accumulates of one image's forward pass, exactly."""
    if spec.architecture is not None:
        return _counted(spec)[0]
    tokens, width = spec.tokens, spec.width
    linear = tokens * (4 * width * width + 2 * width * spec.hidden)
    attention = 2 * tokens * tokens * width
    return (
        tokens * spec.image.channels * spec.patch**2 * width + spec.depth * (linear + attention) + width * spec.classes
    )


def forward_flops(forward: Callable[[torch.Tensor], object], image: ImageShape, batch: int = 1) -> int:
    """Count the FLOPs of a forward pass on the meta device; its parameters must be frozen.

    Matrix products, convolutions and attention's two products count; norms and activations do not.
    """
    # the math backend: the counter counts attention as two products but does not know the CPU's fused kernel
    eager = torch.compiler.set_stance("force_eager")  # the counter cannot see into compiled layers
    with eager, FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        forward(torch.zeros(batch, *image, device="meta"))
    return counter.get_total_flops()


@lru_cache(maxsize=4096)
def _counted(spec: Spec) -> tuple[int, int]:
    """Count the MACs of one image, and the values that are live at once, in one forward pass.

    These are estimated as the largest module's input and output, and twice its block's input.
    """
    live, inside = [0], [0]

    def leaf(module: nn.Module, inputs: Any, output: Any) -> None:
        live[0] = max(live[0], _numel(inputs) + _numel(output) + 2 * inside[0])

    def block(module: nn.Module, inputs: Any) -> None:
        inside[0] = _numel(inputs)

    model = meta_model(spec).eval()
    handles = [each.register_forward_hook(leaf) for each in model.modules() if not any(each.children())]
    handles += [each.register_forward_pre_hook(block) for each in blocks_in_order(model)]
    try:
        return forward_flops(model, spec.image) // 2, live[0]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{spec} does not run: {reason_of(error, 200)}; choose another size or image size") from None
    finally:
        for handle in handles:
            handle.remove()


def _numel(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel()
    return sum(map(_numel, values)) if isinstance(values, tuple | list) else 0


@lru_cache(maxsize=4096)
def _saved_activations(spec: Spec, checkpointed: bool = False) -> int:
    """Count the values per image that the forward pass saves for the backward pass, without weights.

    With checkpointing those are the inputs of blocks, all outside of blocks, and the inside of one block.
    """
    with on_meta():
        model: nn.Module = build(spec)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    outside: dict[int, torch.UntypedStorage] = {}
    saved, inside, inputs = outside, [outside], [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    def enter(module: nn.Module, given: Any) -> None:
        nonlocal saved
        saved = {}
        inside.append(saved)
        inputs[0] += _BYTES * _numel(given)

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        nonlocal saved
        saved = outside

    for block in blocks_in_order(model) if checkpointed else ():
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    batch = 2  # BatchNorm trains on two images at least
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(torch.zeros(batch, *spec.image, device="meta"))
    first, *others = (sum(storage.nbytes() for storage in each.values()) for each in inside)
    return (first + inputs[0] + max(others, default=0)) // (_BYTES * batch)


def inference_memory(spec: Spec, batch: int = 1) -> int:
    """Estimate the bytes of weights plus the peak of live activations (inside one MLP), without gradients."""
    if spec.architecture is not None:
        return _BYTES * (parameters(spec) + batch * _counted(spec)[1])
    activations = batch * spec.tokens * (2 * spec.width + 2 * spec.hidden)
    return _BYTES * (parameters(spec) + activations)


def require_room(spec: Spec, batch: int = 1) -> None:
    """Refuse a spec whose model does not run on so many images within this machine's memory.

    Raises:
        TooLarge: says how much memory that takes, and how much there is.
        UserError: timm refuses the size.
    """
    images = "one image" if batch == 1 else counted(batch, "image")
    require_memory(inference_memory(spec, batch), f"{spec}: its weights and the activations of {images} take")


def activation_memory(spec: Spec, batch: int, *, checkpointed: bool = False) -> int:
    """Estimate the bytes that the forward pass saves for the backward pass (fused attention).

    Without checkpointing, in units of tokens × width a block saves the inputs of two norms, qkv, proj and fc1 (5), and
    q, k, v (3). In units of tokens × hidden width it saves the input and output of the activation (2). The attention
    output is proj's input.
    """
    if spec.architecture is not None:
        return _BYTES * batch * _saved_activations(spec, checkpointed)
    block = 8 * spec.width + 2 * spec.hidden
    layers = spec.depth * spec.width + block if checkpointed else spec.depth * block
    return _BYTES * batch * spec.tokens * layers


def kept_memory(spec: Spec, averaged: bool = False, moments: float = 2) -> int:
    """Count the bytes that training holds between steps, in fp32: weights, AdamW's two moments, `averaged` weights."""
    return round((1 + moments + averaged) * _BYTES * parameters(spec))


def step_memory(spec: Spec, batch: int, *, checkpointed: bool = False) -> int:
    """Estimate the additional bytes of a training step: gradients and saved activations."""
    return _BYTES * parameters(spec) + activation_memory(spec, batch, checkpointed=checkpointed)


def training_memory(spec: Spec, batch: int, *, checkpointed: bool = False) -> int:
    """Estimate the bytes of AdamW training with fp32 weights: weights, gradients, moments and saved activations."""
    return kept_memory(spec) + step_memory(spec, batch, checkpointed=checkpointed)


def costs(spec: Spec) -> dict[str, int]:
    """Return every cost that needs no measurement, under the names that budgets and tables use."""
    return {"params": parameters(spec), "macs": macs(spec), "memory": inference_memory(spec)}
