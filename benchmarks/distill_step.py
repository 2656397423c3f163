"""python -m benchmarks.distill_step [--quick] [--out FILE.json]

Compares the distillation step of `learngene distill` (Ray Train, DeepSpeed, `Stepper`) with a bare torch loop of the
same mathematics. Both have the same auxiliary model, initial weights, ancestry model, batches, fused AdamW, schedule
and precision. With several workers the bare loop uses DistributedDataParallel. Two workers on CPUs, one on a GPU.

The rows of ViT, Eva, Swin and ConvNeXt train SWS on a small size of each. Their bare side is timm's plain model, whose
layers of a stage hold the same parameters: nothing is generated there.

The comparison is fair. Both sides run in the same workers of one Ray Train run and on one process group. They alternate
in blocks of steps (A B A B ...), so machine, threads and load are the same. Stochastic depth is off, so both compute
the same losses; the table has their largest difference. Two warm-up blocks exclude start-up. In `loader` rows both
sides read and augment images (a loader each, in the training process). All other rows use preloaded batches. On a GPU
images are random numbers. Ratios are medians of the rounds' own. "ratio, CPU" compares the CPU seconds of one worker,
which other programs disturb less.
Goal: the package's images/s at least 0.97 of the bare loop's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import arguments, in_turn, machine, medians, paired, publish, seconds_of
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import AugmentationConfig, DataConfig, OptimizationConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.methods.generated import GeneratedVisionTransformer
from ray_learngene.methods.registry import create_method
from ray_learngene.models.blocks import set_drop_path
from ray_learngene.models.build import build
from ray_learngene.models.compile import compile_layers
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import Spec, preset, spec_for
from ray_learngene.training.deepspeed_engine import DeepSpeedEngine, deepspeed_config, zero_stage
from ray_learngene.training.engine import resolve_precision
from ray_learngene.training.finite_guard import FiniteGuard
from ray_learngene.training.objectives import DistillationLoss, DistillationObjective
from ray_learngene.training.optimizers import create_optimizer, create_schedule
from ray_learngene.training.step import Batch, Stepper

GOAL_RATIO = 0.97
WARM_UP_BLOCKS = 2
SEED = 0
Block = Callable[[], list[float]]


@dataclass(frozen=True)
class Case:
    """One row: `batch` images per worker and step, `rounds` blocks of `steps` steps for each side.

    `size` is a preset or one of `FAMILIES`.
    """

    size: str
    batch: int
    steps: int
    rounds: int
    loader: bool = False
    compile: bool = False
    zero: int | None = None


_ISOTROPIC: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 12, "num_heads": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT (DINOv2)": ("vit_small_patch14_reg4_dinov2", _ISOTROPIC),
    "Eva (DINOv3)": ("vit_small_patch16_dinov3", _ISOTROPIC),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 24,
            "depths": [2, 2, 6, 2],
            "num_heads": [1, 2, 4, 8],
        },
    ),
    "ConvNeXt": ("convnext_atto", {"dims": [16, 32, 64, 128], "depths": [2, 2, 6, 2]}),
}

FAMILY_CASES = tuple(Case(name, 32, steps=4, rounds=31) for name in FAMILIES)
CPU_CASES = (
    Case("nano", 32, steps=10, rounds=15),
    Case("nano", 32, steps=10, rounds=15, loader=True),
    Case("nano", 32, steps=10, rounds=15, zero=1),
    Case("micro", 32, steps=2, rounds=11),
    Case("micro", 32, steps=2, rounds=11, loader=True),
    *FAMILY_CASES,
)
GPU_CASES = (
    Case("s", 512, steps=10, rounds=15),
    Case("s", 512, steps=10, rounds=15, compile=True),
    Case("b", 256, steps=10, rounds=15),
    Case("b", 256, steps=10, rounds=15, compile=True),
)
QUICK_CASES = (
    Case("nano", 8, steps=2, rounds=2),
    Case("nano", 8, steps=2, rounds=2, loader=True),
    *(Case(name, 8, steps=2, rounds=2) for name in FAMILIES),
)


def main() -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    from ray_learngene.cluster.session import cluster_has_gpus, ray_cluster

    args = arguments(__doc__, _add_arguments)
    facts = machine()
    if args.alone:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed wants a launcher's
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        torch.set_num_threads(1)
        cases = [case for case in (QUICK_CASES if args.quick else CPU_CASES) if re.search(args.only or "", case.size)]
        publish("distill_step", args, facts, [_measure(case, torch.device("cpu")) for case in cases])
        return
    with ray_cluster(None), tempfile.TemporaryDirectory() as storage:
        gpu = cluster_has_gpus()
        cases = QUICK_CASES if args.quick else GPU_CASES if gpu else CPU_CASES
        cases = tuple(case for case in cases if re.search(args.only or "", case.size))
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]
            train_loop_config={"cases": cases},
            scaling_config=ray.train.ScalingConfig(num_workers=1 if gpu else 2, use_gpu=gpu),
            run_config=ray.train.RunConfig(name="distill_step", storage_path=storage),
        )
        rows: list[dict[str, Any]] = trainer.fit().return_value  # type: ignore[attr-defined]
    publish("distill_step", args, facts, rows)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="rows of sizes that match this expression")
    parser.add_argument("--alone", action="store_true", help="one worker in this process, without Ray")


def _worker(loop: dict[str, Any]) -> list[dict[str, Any]]:
    import ray.train.torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    return [_measure(case, ray.train.torch.get_device()) for case in loop["cases"]]


def _measure(case: Case, device: torch.device) -> dict[str, Any]:
    world_size = torch.distributed.get_world_size()
    spec = _spec(case.size)
    torch.manual_seed(SEED)
    student = create_method("sws").auxiliary(spec).to(device)
    ancestry = Ancestry(_ancestry_model(spec)).ready(device, compiled=case.compile)
    config = OptimizationConfig(
        epochs=max(10, 2 * case.steps * (case.rounds + WARM_UP_BLOCKS) // 10),
        batch_size=case.batch * world_size,
        seed=SEED,
    )
    blocks = {
        "bare": _bare_block(case, config, _plain(student), ancestry, _batches(case, config, spec, ancestry, device)),
        "package": _package_block(case, config, student, ancestry, _batches(case, config, spec, ancestry, device)),
    }
    losses: dict[str, list[float]] = {name: [] for name in blocks}

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        torch.distributed.barrier()

    cpu: dict[str, list[float]] = {name: [] for name in blocks}

    def timed(name: str) -> float:
        finish()
        before = time.process_time()
        seconds = seconds_of(lambda: losses[name].extend(blocks[name]()), finish)
        cpu[name].append(time.process_time() - before)
        return seconds

    sides = {name: lambda name=name: timed(name) for name in blocks}
    in_turn(sides, WARM_UP_BLOCKS)
    cpu = {name: [] for name in blocks}
    seconds = in_turn(sides, case.rounds)
    rates = {name: case.steps * config.batch_size / value for name, value in medians(seconds).items()}
    return {
        "size": case.size,
        "workers": world_size,
        "batch": config.batch_size,
        "precision": str(resolve_precision(config.precision, device) or torch.float32).removeprefix("torch."),
        "batches": "loader" if case.loader else "preloaded",
        "compiled": str(case.compile),
        "zero": "default" if case.zero is None else case.zero,
        "bare images/s": rates["bare"],
        "package images/s": rates["package"],
        "ratio": paired(seconds["bare"], seconds["package"]),
        "ratio, CPU": paired(cpu["bare"], cpu["package"]),
        "goal": f">= {GOAL_RATIO}",
        "loss difference": max(abs(a - b) for a, b in zip(losses["bare"], losses["package"], strict=True)),
        "raw_seconds_bare": seconds["bare"],
        "raw_seconds_package": seconds["package"],
        "raw_cpu_seconds_bare": cpu["bare"],
        "raw_cpu_seconds_package": cpu["package"],
    }


def _spec(size: str) -> Spec:
    if size not in FAMILIES:
        return preset(size)
    architecture, keywords = FAMILIES[size]
    return spec_for(architecture, classes=10, image=32, **keywords)


def _plain(student: nn.Module) -> nn.Module:
    """Copy a student; of one that generates its layers, timm's plain model with the same parameters in many layers."""
    student = copy.deepcopy(student)
    if not isinstance(student, GeneratedVisionTransformer):
        return student
    model: nn.Module = build(student.spec).to(next(student.parameters()).device)
    set_drop_path(model, student.drop_path)  # timm has a rate of its own for some
    for name, parameter in student.generate(student.genes(), student.spec).items():
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._parameters[own] = parameter  # type: ignore[assignment]
    return model


def _ancestry_model(spec: Spec) -> nn.Module:
    """Create LeViT-384 for the paper's sizes; for small sizes, a vision transformer of about the auxiliary's cost."""
    if spec.image.width == 224:
        return timm.create_model("levit_384", num_classes=spec.classes)
    patch = 4 if spec.architecture else spec.patch
    return timm.create_model(
        "deit_tiny_patch16_224", num_classes=spec.classes, img_size=spec.image.size, patch_size=patch, embed_dim=64,
        depth=4, num_heads=4, class_token=False, global_pool="avg",
    )  # fmt: skip


def _batches(
    case: Case, config: OptimizationConfig, spec: Spec, ancestry: Ancestry, device: torch.device
) -> Iterator[Batch]:
    """Iterate over this worker's batches endlessly; both sides get the same batches."""
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    if device.type == "cuda":
        generator = torch.Generator(device).manual_seed(rank)
        shape = (case.batch, *spec.image)
        targets = torch.zeros(case.batch, dtype=torch.long, device=device)
        return itertools.cycle([(torch.randn(shape, device=device, generator=generator), targets) for _ in range(4)])
    sets = open_image_sets(DataConfig(data="digits"))
    preprocessing = Preprocessing(
        image_size=spec.image, mean=ancestry.mean, std=ancestry.std, crop_pct=1.0, interpolation="bicubic"
    )
    images = ImagePipeline(sets.train, sets.val, preprocessing, AugmentationConfig())
    loader = images.training_batches(config, rank=rank, world_size=world_size)
    return iter(loader) if case.loader else itertools.cycle(list(itertools.islice(loader, 8)))


def _package_block(
    case: Case, config: OptimizationConfig, student: nn.Module, ancestry: Ancestry, batches: Iterator[Batch]
) -> Block:
    """Return a block of what a worker of `learngene distill` does between two reports."""
    device = next(student.parameters()).device
    autocast = resolve_precision(config.precision, device)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if case.compile:
        compile_layers(student)
    optimizer = create_optimizer(student, config)
    stage = zero_stage(case.zero, optimizer, {})
    engine = DeepSpeedEngine(
        student, optimizer, deepspeed_config(config, world_size=world_size, zero=stage, autocast=autocast, user={})
    )
    objective = DistillationObjective(
        ancestry.ready(device, compiled=case.compile, autocast=autocast),
        DistillationLoss(),
        smoothing=AugmentationConfig().smoothing,
        autocast=autocast,
    )
    schedule = create_schedule(optimizer, config, steps_per_epoch=10)
    guard = FiniteGuard(device, torch.distributed.all_reduce if world_size > 1 else None)
    first_steps = itertools.count(0, case.steps)

    def block() -> list[float]:
        first = next(first_steps)
        stepper = Stepper(engine, objective, optimizer, schedule, first + case.steps, device, guard, rank=rank)
        losses = [stepper(first + step, itertools.islice(batches, 1)).losses["loss"] for step in range(case.steps)]
        guard.check(first + case.steps, optimizer.param_groups[0]["lr"])  # more often than in training
        return [loss.item() for loss in losses]

    return block


def _bare_block(
    case: Case, config: OptimizationConfig, student: nn.Module, ancestry: Ancestry, batches: Iterator[Batch]
) -> Block:
    """Return a block of the same mathematics in minimal torch."""
    device = next(student.parameters()).device
    dtype = resolve_precision(config.precision, device)
    optimizer = create_optimizer(student, config)
    schedule = create_schedule(optimizer, config, steps_per_epoch=10)
    assert schedule is not None
    if case.compile:
        student.compile()
    model = DistributedDataParallel(student) if torch.distributed.get_world_size() > 1 else student
    model.train()
    numbers = itertools.count()

    def block() -> list[float]:
        losses = []
        for _ in range(case.steps):
            images, _ = next(batches)
            images = images.to(device, non_blocking=True)
            schedule.step_update(next(numbers))
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                with torch.no_grad():
                    teacher = ancestry(images)
                logits = model(images)
            loss = F.kl_div(
                F.log_softmax(logits.float(), dim=-1),
                F.log_softmax(teacher.float(), dim=-1),
                reduction="batchmean",
                log_target=True,
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return [loss.item() for loss in losses]

    return block


if __name__ == "__main__":
    main()
