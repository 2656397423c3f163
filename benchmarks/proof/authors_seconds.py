"""python -m benchmarks.proof.authors_seconds --sws FOLDER --store DIR --data-dir DIR [--quick] [--out FILE.json]

Time the steps of both programs in turn, in one process with one thread: of the authors' program a step of the auxiliary
model and of every size with all that belongs to it (images, teacher, optimizer, log), by their own function for an
epoch; of ours the parts that `benchmarks.proof.seconds` times. --store holds the teacher.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import timm
import torch

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from benchmarks.proof.authors import CLASSES, DATA, PLAN, read_settings, teacher_folder
from benchmarks.proof.authors_main import Work, set_up
from benchmarks.proof.charges import Charges
from benchmarks.proof.commands import teacher_name
from benchmarks.proof.plan import Plan
from benchmarks.proof.seconds import ROUNDS, STEPS, batches, cpu_seconds, steps
from ray_learngene.ancestry.model import load_ancestry
from ray_learngene.config import DataConfig
from ray_learngene.store.store import Store

SECONDS = Path(__file__).with_name("authors_seconds.json")
BATCHES = 4  # of a timed epoch of the authors' program
DEPTHS = (6, 10, 15)  # what a step of the others takes lies between these


def main() -> None:
    args = arguments(__doc__, _flags)
    torch.set_num_threads(1)
    facts, plan = machine(), Plan(PLAN.read_text())
    ancestry = load_ancestry(f"store:ancestries/{teacher_name(DATA)}", Store(str(args.store)))
    loader = batches(plan, ancestry, args.data_dir)
    kept = list(islice(loader, 8))
    left_out = {"teacher", *(f"depth {depth}" for depth in set(range(100)) - set(DEPTHS))}
    ours = {name: step for name, step in steps(plan, ancestry, kept).items() if name not in left_out}
    sides: dict[str, Callable[[], float]] = {
        **_theirs(plan, args),
        "loader": cpu_seconds(lambda: next(loader), STEPS),
        **{name: cpu_seconds(step, STEPS if name in plan.learngenes else BATCHES) for name, step in ours.items()},
    }
    in_turn(sides, 1)
    times = in_turn(sides, 2 if args.quick else ROUNDS)
    facts["load_after"] = os.getloadavg()[0]
    middle, batch = medians(times), plan.settings["batch_size"]
    rows = [
        {"step": name, "ms": 1e3 * middle[name], "batch": batch, "raw_seconds": values}
        for name, values in times.items()
    ]
    publish("authors_seconds", args, facts, rows)


def charges() -> Charges:
    """What a step costs, by program, stage and depth."""
    found = Charges.read(SECONDS, PLAN)
    assert found is not None
    for name in ("depth", "authors' depth"):
        measured = [found.ms[f"{name} {depth}"] for depth in DEPTHS]
        between = np.interp(depths := range(DEPTHS[0], DEPTHS[-1] + 1), DEPTHS, measured)
        found.ms.update({f"{name} {depth}": float(ms) for depth, ms in zip(depths, between, strict=True)})
    return found


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sws", type=Path, required=True, help="checkout of the authors' code")
    parser.add_argument("--store", type=Path, required=True, help="folder with the teacher")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the image sets")


def _theirs(plan: Plan, args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """CPU seconds of a step of the authors' program, by stage."""
    settings = read_settings(PLAN)
    teacher = str(teacher_folder(args.store))
    images = DataConfig(
        data=DATA, data_dir=str(args.data_dir), check_images="off", train_share=plan.images["train_share"]
    )
    work = Work(dict(settings["size"]))
    work.begin({"seed": 0, "epochs": 0, "depth": None, "folder": "."})
    set_up(str(args.sws.absolute()), work, teacher, images)
    import datasets  # type: ignore[import-not-found]  # these are the authors'
    import engine  # type: ignore[import-not-found]
    import losses  # type: ignore[import-not-found]
    import main as program  # type: ignore[import-not-found]
    from timm.optim import create_optimizer

    def step(stage: str) -> Callable[[], float]:
        words = [f"--{name}={value}" for name, value in {**settings["flags"], **settings[stage]}.items()]
        given = program.get_args_parser().parse_args([*words, *settings["switches"]])
        model = timm.create_model(given.model, num_classes=CLASSES)
        taught = timm.create_model("bench_teacher").eval() if stage == "distill" else None
        kind = (given.distillation_type, given.distillation_alpha, given.distillation_tau)
        criterion = losses.DistillationLoss(torch.nn.CrossEntropyLoss(), taught, *kind)
        some = torch.utils.data.Subset(train, range(BATCHES * given.batch_size))
        sampler: Any = torch.utils.data.DistributedSampler(some, 1, 0)
        loader = torch.utils.data.DataLoader(some, given.batch_size, sampler=sampler, drop_last=True)
        optimizer, scaler = create_optimizer(given, model), engine.NativeScalerGA()

        def timed() -> float:
            began = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                engine.train_one_epoch(model, criterion, loader, optimizer, torch.device("cpu"), 0, scaler, None)
            return (time.process_time() - began) / BATCHES

        return timed

    words = [f"--{name}={value}" for name, value in settings["flags"].items()]
    train, _ = datasets.build_dataset(True, program.get_args_parser().parse_args(words))
    found = {"authors' auxiliary": step("distill")}
    for depth in DEPTHS:
        work.sizes["descendant"] = depth
        found[f"authors' depth {depth}"] = step("tune")
    return found


if __name__ == "__main__":
    main()
