"""python -m benchmarks.followers [--epochs 12] [--quick] [--out FILE.json]

What progress, the live page and trackers take of a sweep: CPU seconds of their own threads and calls, over those of the
whole process, in one run. The sweep trains six descendants of the digits in this process, with TensorBoard, MLflow on
sqlite and W&B offline, whichever is installed. Opening a tracker (imports, a new database) happens once and is a row of
its own. W&B's service is a process of its own and not counted. The goal is below 1 % of the sweep.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, machine, publish

GOAL = 1.0
ALL = "all after opening"
SPENT: Counter[str] = Counter()  # CPU seconds by part
CALLS: Counter[str] = Counter()
_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def counted(part: Callable[..., str], call: Callable[..., Any]) -> Callable[..., Any]:
    """Count the CPU seconds of this thread in a call."""

    @functools.wraps(call)
    def wrapped(*given: Any, **named: Any) -> Any:
        name, before = part(*given), time.thread_time()
        try:
            return call(*given, **named)
        finally:
            SPENT[name] += time.thread_time() - before
            CALLS[name] += 1

    return wrapped


def main() -> None:
    args = arguments(__doc__, lambda parser: parser.add_argument("--epochs", type=int, default=12))
    facts = machine()
    import ray_learngene as lg
    from ray_learngene.sweeps.live_page import LivePage
    from ray_learngene.sweeps.trials import Outcomes
    from ray_learngene.tracking import trackers
    from tests.delivery.stores import SPEC, publish_learngene

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_SILENT": "true"}
        targets = {"tensorboard": f"{folder}/tb", "mlflow": f"sqlite:///{folder}/mlflow.db", "wandb": "learngenes"}
        track = [f"{kind}:{targets[kind]}" for kind, package in _PACKAGES.items() if importlib.util.find_spec(package)]
        store = publish_learngene(Path(folder), spec=SPEC)
        for name in ("reported", "finished"):
            setattr(Outcomes, name, counted(lambda *given: "progress in the driver", getattr(Outcomes, name)))
        LivePage._write = counted(lambda *given: "live page", LivePage._write)  # type: ignore[method-assign]
        trackers._open = counted(lambda text: f"opening {text.partition(':')[0]}", trackers._open)
        for kind, tracker in trackers.KINDS.items():
            for name in ("start", "log", "finish", "close"):
                setattr(tracker, name, _of_run(kind, name, getattr(tracker, name)))
        began = time.process_time()
        lg.sweep(
            "gene", name="followed", store=store, data="digits", arms="any-size", depths="1-6", track=track,
            epochs=2 if args.quick else args.epochs, batch_size=32, in_process=True, siblings=1,
        )  # fmt: skip
        whole = time.process_time() - began
    rows = [_row(name, SPENT[name], CALLS[name], whole) for name in sorted(SPENT)]
    running = [name for name in SPENT if not name.startswith("opening")]
    rows.append(_row(ALL, sum(SPENT[name] for name in running), sum(CALLS[name] for name in running), whole))
    publish("followers", args, facts, rows)


def _of_run(kind: str, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The first start of MLflow makes its database, which counts as opening it."""
    first = [name == "start"]

    def part(*given: Any) -> str:
        opening, first[0] = first[0], False
        return f"opening {kind}" if opening else kind

    return counted(part, call)


def _row(name: str, seconds: float, calls: int, whole: float) -> dict[str, Any]:
    share = 100 * seconds / whole
    return {
        "part": name,
        "calls": calls,
        "CPU seconds": seconds,
        "of the sweep (CPU s)": whole,
        "share (%)": share,
        "goal": f"< {GOAL:g} % ({'met' if share < GOAL else 'missed'})" if name == ALL else "",
    }


if __name__ == "__main__":
    main()
