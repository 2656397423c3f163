"""What a spec costs: parameters and MACs exactly, memory estimated, latency measured.

MACs are multiply-accumulates of one image's forward pass: convolution, linear layers and the two attention products
(norms, activations and additions are not counted, as in the papers' tables).
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from ray_learngene.models.specs import Spec

_BYTES = 4  # of a weight, a gradient, a moment, in fp32


def parameters(spec: Spec) -> int:
    """Parameters of the spec's timm model, exactly."""
    width, hidden = spec.width, spec.hidden
    block = (
        2 * 2 * width
        + (3 * width * width + 3 * width)
        + (width * width + width)
        + (2 * width * hidden + hidden + width)
    )
    patch_embed = 3 * spec.patch**2 * width + width
    return patch_embed + spec.tokens * width + spec.depth * block + 2 * width + (width + 1) * spec.classes


def macs(spec: Spec) -> int:
    """Multiply-accumulates of one image's forward pass, exactly."""
    tokens, width = spec.tokens, spec.width
    linear = tokens * (4 * width * width + 2 * width * spec.hidden)
    attention = 2 * tokens * tokens * width
    return tokens * 3 * spec.patch**2 * width + spec.depth * (linear + attention) + width * spec.classes


def inference_memory(spec: Spec, batch: int = 1, bytes_per_value: int = 4) -> int:
    """Estimated bytes of weights plus the peak of live activations (inside one MLP) without gradients."""
    activations = batch * spec.tokens * (2 * spec.width + 2 * spec.hidden)
    return bytes_per_value * (parameters(spec) + activations)


def activation_memory(spec: Spec, batch: int, bytes_per_value: int = 4) -> int:
    """Estimated bytes that the forward pass keeps for the backward pass (fused attention, no checkpointing).

    A block keeps, in units of tokens x width: the inputs of two norms, of qkv, proj and fc1 (5), q, k and v (3) and, of
    hidden width, the input and the output of the activation; the attention's own output is the input of proj.
    """
    block = 8 * spec.width + 2 * spec.hidden
    return bytes_per_value * batch * spec.tokens * spec.depth * block


def kept_memory(spec: Spec, averaged: bool = False) -> int:
    """Bytes that AdamW training keeps between two steps: weights, two moments and, where wanted, the weights' average.

    The master weights are fp32.
    """
    return (4 if averaged else 3) * _BYTES * parameters(spec)


def step_memory(spec: Spec, batch: int, bytes_per_value: int = 4) -> int:
    """Estimated bytes that a training step needs besides: gradients and the activations kept for them."""
    return _BYTES * parameters(spec) + activation_memory(spec, batch, bytes_per_value)


def training_memory(spec: Spec, batch: int, bytes_per_value: int = 4) -> int:
    """Estimated bytes of AdamW training in fp32 master weights: weights, gradients, moments and kept activations."""
    return kept_memory(spec) + step_memory(spec, batch, bytes_per_value)


def costs(spec: Spec, batch: int = 1) -> dict[str, int]:
    """Every cost that needs no measurement, by the names that budgets and tables use."""
    return {
        "params": parameters(spec),
        "macs": macs(spec),
        "memory": inference_memory(spec, batch),
    }


@dataclass(frozen=True)
class Latency:
    """A measured latency of one forward pass and what it was measured on."""

    median_ms: float
    p90_ms: float
    batch: int
    dtype: str
    threads: int
    device: str
    runs: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_latency(
    model: nn.Module,
    image: int,
    *,
    device: torch.device | str = "cpu",
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
    runs: int = 50,
) -> Latency:
    """Time single forward passes (after three warm-up passes) of images `[batch, 3, image, image]`.

    Args:
        threads: CPU threads torch may use.
        runs: Timed passes; the median and the 90th percentile are over these.
    """
    device = torch.device(device)
    model = model.to(device=device, dtype=dtype).eval()
    images = torch.randn(batch, 3, image, image, device=device, dtype=dtype)
    timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=threads)
    with torch.inference_mode():
        timer.timeit(3)
        milliseconds = torch.tensor([1e3 * timer.timeit(1).median for _ in range(runs)])
    return Latency(
        median_ms=round(milliseconds.median().item(), 4),
        p90_ms=round(milliseconds.quantile(0.9).item(), 4),
        batch=batch,
        dtype=str(dtype).removeprefix("torch."),
        threads=threads,
        device=device_name(device),
        runs=runs,
    )


def device_name(device: torch.device | str) -> str:
    """The name of the hardware behind a device, as latency records carry it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.processor() or platform.machine()}"
