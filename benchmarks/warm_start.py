"""python -m benchmarks.warm_start [--seeds 5] [--epochs 4] [--results rows.jsonl]

Distil any-size on the digits from its own initialisation and from the ancestry's blocks, by every rule.

The ancestry is a vision transformer of 9 layers, so each of the 3 shared blocks stands for 3 of them. Students are as
wide as the ancestry, or half as wide. The table gives the accuracy of the learngene's model after few epochs: its mean,
and the mean difference to no warm start with a 95 % interval (Student's t over seeds).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, get_args

from ray_learngene.config import AncestryConfig, DistillConfig
from ray_learngene.distillation.distill import distill
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.methods.warm_start import Rule

from .digits import ANCESTRY_SIZE, DIGITS

_RATE = 3e-3
_T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # by degrees of freedom


def accuracy(store: str, seed: int, width: int, epochs: int, rule: str | None) -> float:
    """Distil one learngene and return the accuracy of its model on the test images, in percent."""
    name = f"{rule or 'none'}-{width}-{epochs}-{seed}"
    made = distill(
        DistillConfig(
            store=store, name=name, ancestry="store:ancestries/digits", preset="nano", depth=9, width=width,
            method="any-size", warm_start=rule, epochs=epochs, lr=_RATE, seed=seed, workers=0, **DIGITS,
        )
    )  # fmt: skip
    return float(made.metadata["metrics"]["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--results", type=Path, help="JSON lines of what was measured, to continue from")
    options = parser.parse_args()
    before = options.results.read_text().splitlines() if options.results and options.results.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in before]
    with tempfile.TemporaryDirectory() as store:
        size = {**ANCESTRY_SIZE, "embed_dim": 64, "depth": 9, "num_heads": 4}
        made = train_ancestry(
            AncestryConfig(
                store=store, name="digits", model="deit_tiny_patch16_224", model_args=size, epochs=15, lr=_RATE,
                workers=0, **{**DIGITS, "warmup_epochs": 1},
            )
        )  # fmt: skip
        print(f"ancestry: top-1 {made.metadata['metrics']['top1']:.1f} %", flush=True)
        for width in options.widths:
            for seed in range(options.seeds):
                for rule in (None, *get_args(Rule)):
                    key = {"rule": rule or "none", "width": width, "epochs": options.epochs, "seed": seed}
                    if not any(key.items() <= row.items() for row in rows):
                        rows.append({**key, "top1": accuracy(store, seed, width, options.epochs, rule)})
                        if options.results:
                            with options.results.open("a") as file:
                                file.write(f"{json.dumps(rows[-1])}\n")
    print("| width | warm start | top-1 | against none |\n|---|---|---|---|")
    for width in options.widths:
        of = {(row["rule"], row["seed"]): row["top1"] for row in rows if row["width"] == width}
        seeds = sorted({seed for _, seed in of})
        for rule in ("none", *get_args(Rule)):
            gains = [of[rule, seed] - of["none", seed] for seed in seeds]
            interval = _T95[len(gains) - 1] * statistics.stdev(gains) / len(gains) ** 0.5
            gain = "" if rule == "none" else f"{statistics.mean(gains):+.1f} ± {interval:.1f}"
            print(f"| {width} | {rule} | {statistics.mean(of[rule, seed] for seed in seeds):.1f} % | {gain} |")


if __name__ == "__main__":
    main()
