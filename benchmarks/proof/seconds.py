"""python -m benchmarks.proof.seconds --store DIR --data-dir DIR [--quick] [--out FILE.json]

Time the steps of the proof's runs in turn, in one process with one thread: a batch from the loader, the teacher's
forward pass, and a training step of every size and of every learngene arm. A run costs its number of steps times these.
So all arms are charged by one machine in one run, whatever else a machine did while it trained them.

A learngene arm's step is the mean over its training: the sampled depths grow. --store holds the teacher.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from benchmarks.proof.commands import teacher_name
from benchmarks.proof.plan import PLAN, Plan
from ray_learngene.ancestry.model import Ancestry, load_ancestry
from ray_learngene.config import AugmentationConfig, DataConfig, OptimizationConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import Spec
from ray_learngene.store.store import Store
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.finite_guard import FiniteGuard
from ray_learngene.training.objectives import DistillationLoss, DistillationObjective, LabelObjective, Objective
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.step import Batch, Stepper

SECONDS = Path(__file__).with_name("seconds.json")
C = TypeVar("C", bound=BaseModel)

DATA = "cifar10"
STEPS = 20  # of a learngene arm, evenly spaced over its training
ROUNDS = 7


def main() -> None:
    args = arguments(__doc__, _flags)
    torch.set_num_threads(1)
    facts, plan = machine(), Plan(PLAN.read_text())
    ancestry = load_ancestry(f"store:ancestries/{teacher_name(DATA)}", Store(str(args.store)))
    loader = batches(plan, ancestry, args.data_dir)
    kept = list(islice(loader, 8))
    sides: dict[str, Callable[[], float]] = {
        "loader": cpu_seconds(lambda: next(loader)),
        **{
            name: cpu_seconds(step, STEPS if name in plan.learngenes else 1)
            for name, step in steps(plan, ancestry, kept).items()
        },
    }
    in_turn(sides, 2)
    times = in_turn(sides, 2 if args.quick else ROUNDS)
    facts["load_after"] = os.getloadavg()[0]
    middle, batch = medians(times), plan.settings["batch_size"]
    rows = [
        {"step": name, "ms": 1e3 * middle[name], "batch": batch, "raw_seconds": values}
        for name, values in times.items()
    ]
    publish("proof_seconds", args, facts, rows)


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, required=True, help="folder with the teacher")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the image sets")


def cpu_seconds(call: Callable[[], object], times: int = 1) -> Callable[[], float]:
    """A function that makes some calls and returns this process's CPU seconds for each."""

    def timed() -> float:
        began = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - began) / times

    return timed


def batches(plan: Plan, ancestry: Ancestry, data_dir: Path) -> Iterator[Batch]:
    """Endless batches `[128, 3, 32, 32]` of the plan's views, made by the product's loader."""
    sets = open_image_sets(DataConfig(data=DATA, data_dir=str(data_dir), check_images="off"))
    preprocessing = Preprocessing(
        image_size=plan.base["image"], mean=ancestry.mean, std=ancestry.std, crop_pct=1.0,
        interpolation=plan.images["interpolation"],
    )  # fmt: skip
    images = ImagePipeline(sets.train, sets.val, preprocessing, _of(AugmentationConfig, plan))
    return iter(images.training_batches(_optimization(plan, epochs=1000)))


def steps(plan: Plan, ancestry: Ancestry, kept: list[Batch]) -> dict[str, Callable[[], object]]:
    """A training step of every model of the plan, by name; each call takes the next of the kept batches."""
    base, depths = plan.base, sorted({depth for step in plan.steps for depth in step.depths})
    size = {"width": base["width"], "heads": base["heads"], "patch": base["patch"], "image": base["image"]}
    largest = Spec(**size, depth=base["depth"], classes=ancestry.classes)
    given = cycle(kept)
    taught = DistillationObjective(_Answers(ancestry.classes), DistillationLoss())
    flags = {**plan.teacher["model_args"], "num_classes": ancestry.classes}
    found: dict[str, Callable[[], object]] = {
        "teacher forward": lambda: _forward(ancestry, next(given)[0]),
        "teacher": _step(plan, timm.create_model(plan.teacher["model"], **flags), LabelObjective(), given),
    }
    for depth in depths:
        found[f"depth {depth}"] = _step(plan, build(largest.replace(depth=depth), seed=0), LabelObjective(), given)
    for name in dict.fromkeys(plan.measured_as().values()):
        flags = plan.learngenes[name]
        spec = largest.replace(depth=flags.get("depth", largest.depth))
        found[name] = _step(plan, create_method(flags["method"]).auxiliary(spec), taught, given)
    return found


class _Answers(nn.Module):
    """Answers that are there already: a teacher's forward pass is timed by itself."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), self.classes)


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> Tensor:
    answers: Tensor = model(images)
    return answers


def _step(plan: Plan, model: nn.Module, objective: Objective, given: Iterator[Batch]) -> Callable[[], object]:
    """The next of STEPS training steps, evenly spaced over a training."""
    config = _optimization(plan, epochs=plan.settings["warmup_epochs"] + 1)
    optimizer, device = create_optimizer(model, config), torch.device("cpu")
    engine = TorchEngine(model, optimizer, clip_grad=config.clip_grad)
    stepper = Stepper(engine, objective, optimizer, None, STEPS, device, FiniteGuard(device))
    numbers = cycle(range(STEPS))
    return lambda: stepper(next(numbers), [next(given)])


def _optimization(plan: Plan, epochs: int) -> OptimizationConfig:
    return _of(OptimizationConfig, plan, epochs=epochs)


def _of(config: type[C], plan: Plan, **more: Any) -> C:
    """The plan's settings that a configuration knows."""
    known = {name: value for name, value in plan.settings.items() if name in config.model_fields}
    return config(**{**known, **more})


if __name__ == "__main__":
    main()
