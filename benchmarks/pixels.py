"""python -m benchmarks.pixels [--photos PARQUET] [--cifar10 FOLDER] [--quick] [--out FILE.json]

Measures the CPU cost of a training image, from encoded or stored pixels to the float batch. This package's loader
returns uint8 and finishes whole batches. The reference is timm's transforms, one image at a time, and timm's mixup, one
pair at a time. Both give the same numbers bit for bit, which is checked before timing. Both run in one process and
alternate. Photographs are those of `benchmarks.image_formats`, cropped to 224 px. Without photographs or CIFAR-10 it
uses scikit-learn's digits at 32 px.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from ray_learngene.config import AugmentationConfig, DataConfig
from ray_learngene.data.image_set import ImageSet, Subset
from ray_learngene.data.loader import train_loader
from ray_learngene.data.open import open_image_sets
from tests.data.test_batch import MEAN, STD, one_by_one

BATCH = 12  # batch size of the reference
AUGMENTATIONS = {
    "crop, flip": AugmentationConfig(),
    "+ erasing, mixup, cutmix": AugmentationConfig(reprob=0.25, mixup=0.8, cutmix=1.0),
    "+ RandAugment": AugmentationConfig(reprob=0.25, mixup=0.8, cutmix=1.0, auto_augment="rand-m9-mstd0.5-inc1"),
}


def main() -> None:
    args = arguments(__doc__, _add)
    facts = machine()
    torch.set_num_threads(1)
    rows = []
    for name, images, size in _sets(args):
        for augmented, augmentation in AUGMENTATIONS.items():
            rows.append(_row(f"{name}, {augmented}", images, size, augmentation, rounds=1 if args.quick else 5))
    publish("pixels", args, facts, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photos", help="Parquet file of the photographs")
    parser.add_argument("--cifar10", help="folder with CIFAR-10's binary files")


def _sets(args: argparse.Namespace) -> Iterator[tuple[str, ImageSet, int]]:
    if args.photos:
        config = DataConfig(data=args.photos, image_column="image_data", label_column="finegrained_cat")
        yield "photographs to 224 px", _some(config, 10 * BATCH), 224
    if args.cifar10:
        yield "CIFAR-10, 32 px", _some(DataConfig(data="cifar10", data_dir=args.cifar10), 40 * BATCH), 32
    if not args.photos and not args.cifar10:
        yield "digits, 32 px", _some(DataConfig(data="digits"), 40 * BATCH), 32


def _some(config: DataConfig, count: int) -> ImageSet:
    return Subset(open_image_sets(config).train, np.arange(count))


def _row(name: str, images: ImageSet, size: int, augmentation: AugmentationConfig, rounds: int) -> dict[str, Any]:
    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(train_loader(images, size, MEAN, STD, augmentation, seed=3, batch_size=BATCH, epochs=2))

    def timm() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return one_by_one(images, size, augmentation, soft=False)

    for ours, theirs in zip(batches(), timm(), strict=True):
        assert all(map(torch.equal, ours, theirs))
    views = 2 * len(images)
    numbers = in_turn({"ours": lambda: _cpu(batches) / views, "timm": lambda: _cpu(timm) / views}, rounds)
    seconds = medians(numbers)
    return {
        "images": name,
        "timm, one at a time (ms)": 1e3 * seconds["timm"],
        "ours (ms)": 1e3 * seconds["ours"],
        "speed": seconds["timm"] / seconds["ours"],
        "kB sent an image": 3 * size * size / 1e3,
        "kB before": 12 * size * size / 1e3,
        "raw_cpu_seconds": numbers,
    }


def _cpu(call: Any) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    main()
