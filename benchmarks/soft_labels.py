"""python -m benchmarks.soft_labels [--quick] [--out FOLDER/soft_labels.json]

Compares distillation from cached soft labels with training on labels alone and with a teacher forward pass in every
step. Measures the size of the files, and how much the loss from cached logits differs from that of the full logits.

Speed: models with the same initial weights train on the same images in one process. They alternate by epochs (A B C A B
C ...); loader, augmentation and reading the store are included. Wall and CPU seconds are measured; CPU seconds are
steadier on a shared machine. Teachers have four and twelve layers; cached soft labels have the same size for both.
Goal: from the cache at least 0.95 of the images/s of training without a teacher.

Size: bytes of the files that a training run publishes, per view. The logits are those of vision transformers with
random weights, so classes and values have no compressible pattern.

Loss: a vision transformer trained on pairs of scanned digits (100 classes) gives logits for augmented views. The
student is the same model in the middle of its training. "lost" is the mass outside the k highest logits. "gradient
error" is the norm of the error of the loss's gradient with respect to the student's logits, over the norm of the exact
gradient.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from ray_learngene.ancestry.answers import Answers
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.cli.catalog import summaries
from ray_learngene.config import AugmentationConfig, DataConfig, DistillationConfig, OptimizationConfig
from ray_learngene.data.image_set import ArraySet, Subset
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.methods.registry import create_method
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import preset
from ray_learngene.store.store import Store
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.finite_guard import FiniteGuard
from ray_learngene.training.objectives import DistillationLoss, DistillationObjective, LabelObjective, Objective
from ray_learngene.training.optimizers import create_optimizer, create_schedule
from ray_learngene.training.soft_labels import SoftLabels
from ray_learngene.training.step import Batch, Stepper

GOAL_RATIO = 0.95
CPU = torch.device("cpu")
MIXED = AugmentationConfig(mixup=0.8, cutmix=1.0, scale=(0.5, 1.0), hflip=0.0)
TEACHING = DistillationConfig(soft_labels=True)


def main() -> None:
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in (("", speed), ("_size", size), ("_loss", loss)):
            facts = machine()
            rows = measure(Path(folder) / f"store{name}", args.quick)
            out = args.out and args.out.with_stem(args.out.stem + name)
            publish(f"soft_labels{name}", argparse.Namespace(quick=args.quick, out=out), facts, rows)


def vision_transformer(image: int, patch: int, width: int, depth: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "deit_tiny_patch16_224", num_classes=classes, img_size=image, patch_size=patch, embed_dim=width, depth=depth,
        num_heads=width // 32, class_token=False, global_pool="avg",
    )  # fmt: skip


def some_images(train: Any, image: int, augmentation: AugmentationConfig) -> ImagePipeline:
    half = (0.5, 0.5, 0.5)
    settings = Preprocessing(image_size=image, mean=half, std=half, crop_pct=1.0, interpolation="bicubic")
    return ImagePipeline(train, train, settings, augmentation)


def digits(count: int) -> ImagePipeline:
    return some_images(Subset(open_image_sets(DataConfig(data="digits")).train, np.arange(count)), 8, MIXED)


def speed(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Time epochs of training without a teacher, from the cache, and with forward passes of two ancestry models."""
    rounds, warm_up = (2, 1) if quick else (15, 2)
    images = digits(128 if quick else 512)
    config = OptimizationConfig(epochs=rounds + warm_up, batch_size=64, warmup_epochs=0)
    spec = preset("nano")
    torch.manual_seed(0)
    student = create_method("sws").auxiliary(spec)
    light, heavy = (Ancestry(vision_transformer(8, 2, width, depth, 10)) for width, depth in ((64, 4), (192, 12)))

    def answers() -> Answers:
        return Answers(config, TEACHING, images, light, Store(str(folder)), CPU, None)

    for _ in answers().added_to(images.training_batches(config)):
        pass
    distillation = DistillationLoss()
    reading = answers()
    sides: dict[str, tuple[Objective, Callable[[Any], Iterator[Batch]]]] = {
        "no teacher": (LabelObjective(), iter),
        "cache": (DistillationObjective(None, distillation), reading.beside),
        "asked, 4 layers": (DistillationObjective(light, distillation), iter),
        "asked, 12 layers": (DistillationObjective(heavy, distillation), iter),
    }
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}

    def side(name: str) -> Callable[[], float]:
        objective, beside = sides[name]
        epoch = _epochs(copy.deepcopy(student), objective, beside(images.training_batches(config)), config, images)

        def timed() -> float:
            began, used = time.perf_counter(), time.process_time()
            epoch()
            cpu_seconds[name].append(time.process_time() - used)
            return time.perf_counter() - began

        return timed

    calls = {name: side(name) for name in sides}
    in_turn(calls, warm_up)
    seconds = in_turn(calls, rounds)
    assert reading.read == (rounds + warm_up) * len(images.train), "an epoch was not read"
    clock, cpu = medians(seconds), medians({name: values[warm_up:] for name, values in cpu_seconds.items()})
    return [
        {
            "side": name,
            "images/s": len(images.train) / clock[name],
            "of no teacher": clock["no teacher"] / clock[name],
            "images per CPU second": len(images.train) / cpu[name],
            "of no teacher, by CPU": cpu["no teacher"] / cpu[name],
            "goal": f">= {GOAL_RATIO}" if name == "cache" else "",
            "raw_seconds": seconds[name],
            "raw_cpu_seconds": cpu_seconds[name][warm_up:],
        }
        for name in sides
    ]


def _epochs(
    model: nn.Module, objective: Objective, batches: Iterator[Batch], config: OptimizationConfig, images: ImagePipeline
) -> Callable[[], None]:
    """Return a function that trains one epoch per call."""
    optimizer = create_optimizer(model, config)
    per_epoch = len(images.train) // config.batch_size
    stepper = Stepper(
        TorchEngine(model, optimizer),
        objective,
        optimizer,
        create_schedule(optimizer, config, per_epoch),
        config.epochs * per_epoch,
        CPU,
        FiniteGuard(CPU),
    )
    steps = itertools.count()

    def epoch() -> None:
        for step in itertools.islice(steps, per_epoch):
            stepper(step, itertools.islice(batches, 1))

    return epoch


def size(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Measure the bytes of published epochs."""
    images = digits(1024)
    rows: list[dict[str, Any]] = []
    for classes, k, dtype in (
        (10, 10, "float16"),
        (1000, 100, "float16"),
        (1000, 16, "float16"),
        (1000, 10, "float16"),
        (1000, 1000, "float32"),
    ):
        ancestry = Ancestry(vision_transformer(8, 4, 64, 2, classes))
        nn.init.normal_(ancestry.model.get_submodule("head").weight)
        config = OptimizationConfig(epochs=1 if quick else 8, batch_size=256, warmup_epochs=0)
        teaching = DistillationConfig(soft_labels=True, soft_labels_k=k, soft_labels_dtype=dtype)  # type: ignore[arg-type]
        store = Store(str(folder / f"{classes}-{k}-{dtype}"))
        for _ in Answers(config, teaching, images, ancestry, store, CPU, None).added_to(
            images.training_batches(config)
        ):
            pass
        (facts,) = summaries(store).values()
        each = facts["bytes"] / facts["views"]
        rows.append(
            {
                "classes": classes,
                "k": k,
                "dtype": dtype,
                "views in a file": facts["views"] // facts["epochs"],
                "MB a million views": each,
                "GB, ImageNet x 300 epochs": each * 1_281_167 * 300 / 1e9,
            }
        )
    return rows


def loss(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Compare the loss from cached logits with that from full logits, at 100 classes."""
    pairs = pairs_of_digits(512 if quick else 4096)
    plain = AugmentationConfig(scale=(0.7, 1.0), hflip=0.0)
    images = some_images(pairs, 16, plain)
    config = OptimizationConfig(epochs=2 if quick else 16, batch_size=64, lr=8e-3, warmup_epochs=1)
    model = vision_transformer(16, 4, 64, 4, 100)
    epoch = _epochs(model, LabelObjective(0.1), iter(images.training_batches(config)), config, images)
    for number in range(config.epochs):
        if number == config.epochs // 2:
            student = copy.deepcopy(model).eval()
        epoch()
    model.eval()
    rows: list[dict[str, Any]] = []
    views = OptimizationConfig(epochs=1, batch_size=256, warmup_epochs=0)
    for name, augmentation in (("plain", plain), ("mixup and cutmix", MIXED)):
        seen = [batch for batch, _ in some_images(pairs, 16, augmentation).training_batches(views)][:8]
        with torch.no_grad():
            teacher, learner = (torch.cat([each(batch) for batch in seen]) for each in (model, student))
        for k in (4, 8, 16, 32, 100):
            kept = SoftLabels.of(teacher, k, "float16").logits()
            row = {
                "views": name,
                "highest probability": teacher.softmax(-1).amax(-1).mean().item(),
                "k of 100": k,
                "lost": (1 - teacher.softmax(-1).topk(k).values.sum(-1)).mean().item(),
            }
            for tau in (1.0, 4.0):
                (whole, exact), (near, gradient) = (_with_gradient(learner, logits, tau) for logits in (teacher, kept))
                row |= {
                    f"loss, tau {tau:g}": whole,
                    f"kept, tau {tau:g}": near,
                    f"gradient error, tau {tau:g}": ((gradient - exact).norm() / exact.norm()).item(),
                }
            rows.append(row)
    return rows


def _with_gradient(student: Tensor, teacher: Tensor, tau: float) -> tuple[float, Tensor]:
    student = student.clone().requires_grad_()
    value = DistillationLoss(tau=tau)(student, teacher, None)["loss"]
    (gradient,) = torch.autograd.grad(value, student)
    return value.item(), gradient


def pairs_of_digits(count: int) -> ArraySet:
    """Make images of 16 px and 100 classes: two scanned digits next to each other, repeated below."""
    whole = open_image_sets(DataConfig(data="digits")).train
    pixels = np.stack([np.asarray(whole.image(index).convert("L")) for index in range(len(whole))])
    left, right = np.random.default_rng(0).integers(len(whole), size=(2, count))
    row = np.concatenate([pixels[left], pixels[right]], axis=2)
    labels = 10 * whole.labels[left] + whole.labels[right]
    names = tuple(f"{number:02}" for number in range(100))
    return ArraySet("pairs", np.concatenate([row, row], axis=1), labels, names)


if __name__ == "__main__":
    main()
