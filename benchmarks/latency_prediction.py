"""python -m benchmarks.latency_prediction [RECORD.json ...] [--out FILE.json]

How near predicted latencies come: of each record of `measure.py`, a few sizes are given and all others are held out.
Without records, those in benchmarks/results/cpu-2-cores/latency/ are read. The goal is 5 % for widths of 192 and above.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.measure import ROOT, arguments, machine, publish
from ray_learngene.store.timings import Record, TimedSize, TimedSpec, Timings, read_records

GOAL = 0.05
RESULTS = ROOT / "benchmarks/results/cpu-2-cores/latency"
Sizes = list[TimedSize]


def main() -> None:
    args = arguments(__doc__, lambda parser: parser.add_argument("records", nargs="*", type=Path))
    paths = args.records or sorted(RESULTS.glob("*.json"))
    found = [(path, one) for path in paths for one in read_records(path.read_text(), str(path))]
    rows = [row for path, record in found for row in rows_of(path.stem, record)]
    publish("latency_prediction", args, machine(), rows)


def rows_of(name: str, record: Record) -> Iterator[dict[str, Any]]:
    """What each choice of given sizes predicts of the others; only those between the given widths are held out."""
    for what, given in choices(record).items():
        timings = Timings(name, (record.model_copy(update={"sizes": given}),))
        widths = [spec_of(one).width for one in given]
        held = [one for one in record.sizes if one not in given and min(widths) <= spec_of(one).width <= max(widths)]
        if not held:
            continue
        predicted = [timings.of(spec_of(one)) for one in held]
        missed = [abs(one.milliseconds / real.latency_ms - 1) for one, real in zip(predicted, held, strict=True)]
        yield {
            "record": name,
            "given": what,
            "sizes given": len(given),
            "held out": len(held),
            "missed by, mean (%)": 100 * mean(missed),
            "at most (%)": 100 * max(missed),
            "stated error (%)": 100 * max(one.error for one in predicted),
            "goal": f"<= {100 * GOAL:g} % ({'met' if max(missed) <= GOAL else 'missed'})" if min(widths) >= 192 else "",
            "given sizes": [spec_of(one).model_dump(mode="json") for one in given],
            "sizes": [spec_of(one).model_dump(mode="json") for one in held],
            "missed": missed,
        }


def choices(record: Record) -> dict[str, Sizes]:
    """Sets of given sizes, by what they are: of a grid, the least, middle and largest width and depth."""
    at = {(spec_of(one).width, spec_of(one).depth): one for one in record.sizes}
    widths, depths = sorted({width for width, _ in at}), sorted({depth for _, depth in at})
    narrow, wide, shallow, deep = widths[0], widths[-1], depths[0], depths[-1]
    corners = [(narrow, shallow), (narrow, deep), (wide, shallow), (wide, deep)]
    middle = widths[len(widths) // 2], depths[len(depths) // 2]
    sets = {
        "two widths, two depths": corners,
        "the same, and the middle": [*corners, middle],
        "the same, and every other width at the middle depth": [
            *corners,
            *((width, depths[len(depths) // 2]) for width in widths[1:-1]),
        ],
        "three widths, one of them at two depths": [
            *((wide, shallow), (wide, deep), (narrow, deep)),
            (widths[len(widths) // 2], deep),
        ],
        "two neighbouring widths, two depths": [(width, depth) for width in widths[:2] for depth in (shallow, deep)],
        **{
            f"width {width}, three depths": [(width, depth) for depth in (shallow, depths[len(depths) // 2], deep)]
            for width in widths
        },
    }
    return {
        what: [at[size] for size in sizes] for what, sizes in sets.items() if len(depths) > 3 or "three" not in what
    }


def spec_of(one: TimedSize) -> TimedSpec:
    assert one.spec is not None
    return one.spec


if __name__ == "__main__":
    main()
