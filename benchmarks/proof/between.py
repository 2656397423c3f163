"""python -m benchmarks.proof.between --store DIR --data-dir DIR [--learngenes NAME ...] [--rows FILE.jsonl]

Make models of every depth from learngenes of the proof, also deeper than the deepest that was trained, and test them
untuned. It trains nothing. Appends a row for each model; what has a row is skipped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.proof.plan import Row
from benchmarks.proof.run import read_rows

ROWS = Path(__file__).with_name("between.jsonl")
LEARNGENES = ("cifar10-any-size-views-e20-s0-lr0.08", "cifar10-any-size-untied-20-e20-s0-lr0.08")
DATA = "cifar10"
DEPTHS = (*range(2, 13), 14, 16, 18)
TOP1 = "top1_untuned"


def measured(name: str, depths: Sequence[int], store: Path, data_dir: Path) -> list[Row]:
    """Test models of these depths, made from a learngene of the store."""
    import ray_learngene as lg

    images = {"data": DATA, "data_dir": str(data_dir), "check_images": "off"}
    sizes = ",".join(map(str, depths))
    with tempfile.TemporaryDirectory() as out:
        models = lg.expand_all(name, store=str(store), depths=sizes, out=out, **images)
        metrics = [json.loads((model.path / "metrics.json").read_text()) for model in models]
    kept = ("learngene", "learngene_version", "method", "options", "params", "macs", TOP1, "versions", "git_revision")
    return [{"depth": one["spec"]["depth"], **{key: one[key] for key in kept}} for one in metrics]


def depth_lines(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: top-1 by learngene and depth; empty without rows."""
    depths = sorted({row["depth"] for row in rows})
    lines = [f"| layers | {' | '.join(map(str, depths))} |", "|---" * (len(depths) + 1) + "|"] if rows else []
    for name in dict.fromkeys(row["learngene"] for row in rows):
        scores = {row["depth"]: f"{row[TOP1]:.1f}" for row in rows if row["learngene"] == name}
        lines.append(f"| {name} | {' | '.join(scores.get(depth, '') for depth in depths)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--store", type=Path, required=True, help="folder with the learngenes")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the image sets")
    parser.add_argument("--learngenes", nargs="+", default=LEARNGENES, metavar="NAME", help="names in the store")
    parser.add_argument("--rows", type=Path, default=ROWS, help="measured models, one JSON object a line")
    args = parser.parse_args()
    for name in args.learngenes:
        done = {row["depth"] for row in read_rows(args.rows) if row["learngene"] == name}
        if depths := [depth for depth in DEPTHS if depth not in done]:
            rows = measured(name, depths, args.store.absolute(), args.data_dir.absolute())
            with args.rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    print("\n".join(depth_lines(read_rows(args.rows))))


if __name__ == "__main__":
    main()
