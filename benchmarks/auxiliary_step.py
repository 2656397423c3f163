"""python -m benchmarks.auxiliary_step [--quick] [--out FILE.json]

Measures the training step on one device, without Ray, DeepSpeed or a store. Models are the SWS auxiliary (16 layers)
and a descendant (12 layers, plain timm). Each runs eager, with `--compile` (layer by layer), and compiled as a whole by
torch. Reported: images/s, model FLOPs utilisation (MFU), the time of the first block, and the cost of the teacher
forward pass (LeViT-384).

On a GPU: presets s and b, 224 px, bf16. On a CPU: nano and micro in fp32, with a small vision transformer as ancestry
model. The CPU run shows whether compiling is faster there, not how fast a GPU trains.

The comparison is fair. All sides (matrix product, eager and compiled steps, teacher forward pass) alternate in one run,
on the same images. The first block includes compilation and is reported separately; the second block is discarded.
Compiled code of earlier runs is not used. MFU is 6 x MACs x images/s (a multiply-accumulate is two operations, a
backward pass two forward passes) over the operations/s of a large square matrix product of the same dtype, timed
between the blocks.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from torch import Tensor, nn

from benchmarks.measure import arguments, in_turn, machine, medians, publish, seconds_of
from ray_learngene.config import OptimizationConfig
from ray_learngene.methods.registry import create_method
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build
from ray_learngene.models.compile import compile_layers
from ray_learngene.models.costs import macs
from ray_learngene.models.device import resolve_device
from ray_learngene.models.specs import Spec, preset
from ray_learngene.training.engine import TorchEngine, resolve_precision
from ray_learngene.training.finite_guard import FiniteGuard
from ray_learngene.training.objectives import LabelObjective
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.step import Stepper

DESCENDANT_DEPTH = 12
DROP_PATH = 0.1
STEPS = ("eager", "layers compiled", "compiled whole")


@dataclass(frozen=True)
class Case:
    """Auxiliary and descendant of a preset, eager and compiled; `rounds` blocks of `steps` steps for each side."""

    preset: str
    batch: int
    steps: int
    rounds: int


GPU_CASES = (Case("s", 512, steps=10, rounds=15), Case("b", 256, steps=10, rounds=15))
CPU_CASES = (Case("nano", 64, steps=5, rounds=11), Case("micro", 16, steps=2, rounds=11))


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    device = resolve_device()
    cases: tuple[Case, ...] = GPU_CASES if device.type == "cuda" else CPU_CASES
    if args.quick:
        cases = (replace(cases[0], batch=cases[0].batch // 8, steps=1, rounds=2),)
    rows = [row for case in cases for row in _rows(case, device)]
    publish("auxiliary_step", args, facts, rows)


def _rows(case: Case, device: torch.device) -> Iterable[dict[str, Any]]:
    spec = preset(case.preset)
    descendant_spec = spec.replace(depth=DESCENDANT_DEPTH)
    descendant = build(descendant_spec, seed=0)
    set_drop_path(descendant, DROP_PATH)
    auxiliary = create_method("sws").auxiliary(spec, drop_path=DROP_PATH)
    for name, each, model in (("auxiliary", spec, auxiliary), ("descendant", descendant_spec, descendant)):
        torch.compiler.reset()  # otherwise the descendant's first step would reuse the auxiliary's compiled layers
        with tempfile.TemporaryDirectory() as cache:
            # set both: torch's compiler processes outlive a model and would keep the first Triton folder
            os.environ.update(TORCHINDUCTOR_CACHE_DIR=cache, TRITON_CACHE_DIR=f"{cache}/triton")
            yield from _measure(case, name, each, model.to(device), device)


def _measure(case: Case, name: str, spec: Spec, model: nn.Module, device: torch.device) -> Iterable[dict[str, Any]]:
    images = torch.randn(case.batch, *spec.image, device=device)
    targets = torch.randint(spec.classes, (case.batch,), device=device)
    dtype = resolve_precision("auto", device)
    size = 8192 if device.type == "cuda" else 1024
    ancestry_name, ancestry = _ancestry(spec)
    ancestry = ancestry.to(device).eval().requires_grad_(False)
    compiled_ancestry = copy.deepcopy(ancestry)
    compile_layers(compiled_ancestry)
    layers, whole = copy.deepcopy(model), copy.deepcopy(model)
    compile_layers(layers)
    whole.compile()
    calls = {
        "matmul": _matmul(size, case.steps, dtype or torch.float32, device),
        **{
            name: _training(case, each, images, targets, dtype)
            for name, each in zip(STEPS, (model, layers, whole), strict=True)
        },
        "ancestry": _forward(case, ancestry, images, dtype),
        "compiled_ancestry": _forward(case, compiled_ancestry, images, dtype),
    }
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    sides = {side: partial(seconds_of, call, finish) for side, call in calls.items()}
    first = in_turn(sides, 1)
    in_turn(sides, 1)
    seconds = in_turn(sides, case.rounds)
    middle = medians(seconds)
    peak = case.steps * 2 * size**3 / middle["matmul"]
    for side in STEPS:
        rate = case.steps * case.batch / middle[side]
        yield {
            "model": f"{case.preset} {name}",
            "batch": case.batch,
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            "step": side,
            "images/s": rate,
            "over eager": middle["eager"] / middle[side],
            "first block (s)": first[side][0],
            "matmul Tflop/s": peak / 1e12,
            "MFU": 6 * macs(spec) * rate / peak,
            "ancestry": ancestry_name,
            "ancestry / step": middle["ancestry"] / middle[side],
            "compiled ancestry / step": middle["compiled_ancestry"] / middle[side],
            "raw_seconds": {part: seconds[part] for part in (side, "matmul", "ancestry", "compiled_ancestry")},
        }


def _ancestry(spec: Spec) -> tuple[str, nn.Module]:
    if spec.image.width == 224:
        return "levit_384", timm.create_model("levit_384", num_classes=spec.classes)
    return "small vit", build(spec.replace(depth=4))


def _matmul(size: int, steps: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def block() -> None:
        for _ in range(steps):
            torch.mm(a, b, out=out)

    return block


def _training(
    case: Case, model: nn.Module, images: Tensor, targets: Tensor, dtype: torch.dtype | None
) -> Callable[[], None]:
    """Return a block of the package's steps on labels: forward, backward and optimizer, without an ancestry model."""
    config = OptimizationConfig(batch_size=case.batch)
    optimizer = create_optimizer(model, config)
    engine = TorchEngine(model, optimizer, autocast=dtype)
    stepper = Stepper(
        engine, LabelObjective(0.1), optimizer, None, case.steps, images.device, FiniteGuard(images.device)
    )

    def block() -> None:
        for step in range(case.steps):
            stepper(step, [(images, targets)])

    return block


def _forward(case: Case, ancestry: nn.Module, images: Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """Return a block of teacher forward passes, as in the distillation step."""

    def block() -> None:
        with torch.no_grad(), torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            for _ in range(case.steps):
                ancestry(images)

    return block


if __name__ == "__main__":
    main()
