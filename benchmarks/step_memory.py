"""python -m benchmarks.step_memory [--quick] [--out FILE.json]

Measures the peak memory of a training step of 32 images on the CPU: weights, gradients and all that torch allocates
meanwhile, without the optimizer's moments. The sides are the largest size alone and the elastic model of `any-size`,
each with and without gradient checkpointing. "seconds" compares CPU seconds of a step with those of the first side.
Goal: any-size needs no more than the largest size alone plus the shared weights.
"""

from __future__ import annotations

import time
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import torch
from torch import nn

from benchmarks.distill_step import FAMILIES
from benchmarks.measure import arguments, in_turn, machine, medians, peak_of, publish
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build
from ray_learngene.models.checkpointing import checkpoint_gradients
from ray_learngene.models.specs import Spec, spec_for

BATCH, ROUNDS, MIB = 32, 5, 2**20


def weights(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def take_step(model: nn.Module, images: torch.Tensor) -> None:
    """Take the step of an elastic model whose sub-models are the largest, or that of a plain model."""
    draw_step(model, seed=0, step=0, total_steps=1)
    model.train()(images).logsumexp(-1).mean().backward()


def needed(model: nn.Module, images: torch.Tensor) -> int:
    """Return the peak bytes of a step with its weights; gradients are allocated in it."""
    model.zero_grad(set_to_none=True)
    return weights(model) + peak_of(lambda: take_step(model, images))


def _row(name: str, spec: Spec, rounds: int) -> dict[str, Any]:
    images = torch.randn(BATCH, *spec.image)
    models: dict[str, nn.Module] = {}
    for side in ("largest", "any-size"):
        for checkpointed in ("", " checkpointed"):
            torch.manual_seed(0)
            model = build(spec) if side == "largest" else create_method("any-size").auxiliary(spec)
            set_drop_path(model, 0.0)  # timm has a rate of its own for some
            if checkpointed:
                checkpoint_gradients(model)
            models[side + checkpointed] = model
    for model in models.values():
        take_step(model, images)
    peaks = {side: needed(model, images) for side, model in models.items()}

    def seconds(model: nn.Module) -> float:
        before = time.process_time()
        take_step(model, images)
        return time.process_time() - before

    cpu = medians(in_turn({side: lambda model=model: seconds(model) for side, model in models.items()}, rounds))  # type: ignore[misc]
    shared = weights(models["any-size"])
    return {
        "family": name,
        "weights MiB": weights(models["largest"]) / MIB,
        "shared MiB": shared / MIB,
        **{f"{side} MiB": peak / MIB for side, peak in peaks.items()},
        "any-size over largest + shared": peaks["any-size"] / (peaks["largest"] + shared),
        "checkpointed over largest": peaks["largest checkpointed"] / peaks["largest"],
        "checkpointed over any-size": peaks["any-size checkpointed"] / peaks["any-size"],
        "seconds, largest checkpointed": cpu["largest checkpointed"] / cpu["largest"],
        "seconds, any-size checkpointed": cpu["any-size checkpointed"] / cpu["any-size"],
    }


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    torch.set_num_threads(1)
    rows = [
        _row(name, spec_for(architecture, classes=10, image=32, **keywords), 1 if args.quick else ROUNDS)
        for name, (architecture, keywords) in FAMILIES.items()
    ]
    publish("step_memory", args, facts, rows)


if __name__ == "__main__":
    main()
