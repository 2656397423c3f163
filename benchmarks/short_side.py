"""python -m benchmarks.short_side --photos PARQUET [--quick] [--out FILE.json]

Measures the savings of `learngene data convert --short-side`: megabytes of the shards, and CPU milliseconds to decode
an image and to make a 224 px training view of it, for the originals and for shorter sides. All alternate in one
process. Smaller images are not enlarged. The photographs of `benchmarks.image_formats` have a short side of 348 pixels
and are strongly compressed; larger or less compressed originals save more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from ray_learngene.config import AugmentationConfig, DataConfig
from ray_learngene.data.convert import convert
from ray_learngene.data.image_set import ImageSets
from ray_learngene.data.loader import train_loader
from ray_learngene.data.open import open_image_sets

SIDES = (None, 288, 256)
IMAGES = 320


def main() -> None:
    args = arguments(__doc__, _add)
    facts = machine()
    config = DataConfig(data=args.photos, image_column="image_data", label_column="finegrained_cat", check_images="off")
    with tempfile.TemporaryDirectory() as temporary:
        converted = {side: convert(config, f"{temporary}/{side}", short_side=side) for side in SIDES}
        sets = {side: open_image_sets(DataConfig(data=f"{temporary}/{side}")) for side in SIDES}
        calls: dict[str, Callable[[], float]] = {}
        for side in SIDES:
            calls[f"decode {side}"] = lambda side=side: _cpu(lambda: _decode(sets[side]))  # type: ignore[misc]
            calls[f"view {side}"] = lambda side=side: _cpu(lambda: _views(sets[side]))  # type: ignore[misc]
        numbers = in_turn(calls, 1 if args.quick else 5)
    milliseconds = {name: 1e3 * seconds / IMAGES for name, seconds in medians(numbers).items()}
    rows: list[dict[str, Any]] = [
        {
            "short side": "348 (original bytes)" if side is None else side,
            "MB": converted[side]["bytes"] / 1e6,
            "of the original": converted[side]["bytes"] / converted[None]["bytes"],
            "decode (ms)": milliseconds[f"decode {side}"],
            "view at 224 px (ms)": milliseconds[f"view {side}"],
            "views a CPU second": 1e3 / milliseconds[f"view {side}"],
            "raw_cpu_seconds": [numbers[f"decode {side}"], numbers[f"view {side}"]],
        }
        for side in SIDES
    ]
    publish("short_side", args, facts, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photos", required=True, type=lambda path: str(Path(path).absolute()), help="Parquet file")


def _decode(sets: ImageSets) -> None:
    for index in range(IMAGES):
        sets.train.image(index)


def _views(sets: ImageSets) -> None:
    options: dict[str, Any] = {"seed": 0, "batch_size": 32, "epochs": 1}
    loader = train_loader(sets.train, 224, (0.5,) * 3, (0.25,) * 3, AugmentationConfig(), **options)
    for _ in islice(loader, IMAGES // 32):
        pass


def _cpu(call: Callable[[], None]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    main()
