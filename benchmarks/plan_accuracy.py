"""python -m benchmarks.plan_accuracy [--epochs 20] [--quick] [--out FILE.json]

What `learngene plan --calibrate --distill` says that a distillation and a sweep will cost, against what they then cost,
in one process on the CPU. Both are CPU seconds of the process, which other programs on the machine change less than
seconds by the clock. The load is recorded. Goal: within 15 %.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, machine, publish

GOAL = 15.0
SIZE = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4}
COMMON: dict[str, Any] = {"data": "digits", "batch_size": 64, "drop_path": 0.0}


def main() -> None:
    args = arguments(__doc__, lambda parser: parser.add_argument("--epochs", type=int, default=20))
    facts = machine()
    import ray_learngene as lg

    epochs = 2 if args.quick else args.epochs
    with tempfile.TemporaryDirectory() as folder:
        shared = {**COMMON, "store": f"{folder}/store"}
        size = {**SIZE, "class_token": False, "global_pool": "avg"}
        lg.train_ancestry(
            **shared, name="a", model="deit_tiny_patch16_224", model_args=size, workers=0, epochs=1, warmup_epochs=0
        )
        distill = {"name": "g", "ancestry": "store:ancestries/a", "preset": "nano", "epochs": epochs, "workers": 0}
        recipe = Path(folder, "distill.yaml")
        recipe.write_text(json.dumps({**COMMON, **distill}))
        sweep = {**shared, "depths": "3,6,9", "arms": "any-size", "epochs": epochs, "in_process": True, "name": "s"}
        cost = lg.plan("g", **sweep, calibrate=True, distill=str(recipe)).cost
        assert cost and cost.distillation
        gene = lg.distill(**shared, **distill)
        table = lg.sweep(gene, **sweep)
    trained = {row["depth"]: row for row in table.to_dict("records")}
    rows = [_row("distillation", cost.distillation, gene.manifest.metadata["cost"], cost.distillation.load)]
    rows += [_row(f"depth {one.spec.depth}", one, trained[one.spec.depth], cost.load) for one in cost.descendants]
    rows.append(_compared("all", *(sum(row[f"{name} (CPU s)"] for row in rows) for name in ("planned", "spent"))))
    publish("plan_accuracy", args, facts, rows)


def _row(name: str, planned: Any, spent: Mapping[str, Any], load: float) -> dict[str, Any]:
    clock = f"{planned.seconds:.1f}, {spent['seconds']:.1f}"
    return _compared(name, planned.device_seconds, spent["device_seconds"], f"{load:.1f}, {spent['load']:.1f}", clock)


def _compared(name: str, planned: float, spent: float, load: str = "", clock: str = "") -> dict[str, Any]:
    difference = 100 * (spent / planned - 1)
    return {
        "what": name,
        "planned (CPU s)": planned,
        "spent (CPU s)": spent,
        "difference (%)": difference,
        "load (planned, spent)": load,
        "by the clock (s; planned, spent)": clock,
        "goal": f"within {GOAL:g} % ({'met' if abs(difference) <= GOAL else 'missed'})",
    }


if __name__ == "__main__":
    main()
