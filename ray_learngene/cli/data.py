"""`learngene data check` and `learngene data convert`."""

from __future__ import annotations

import json
from dataclasses import asdict

from ray_learngene.config import CheckConfig, ConvertConfig
from ray_learngene.data.check import is_full
from ray_learngene.data.convert import convert
from ray_learngene.data.findings import Inspection, inspect_image_sets, refuse_errors
from ray_learngene.data.reader import unreadable_text
from ray_learngene.progress import counted
from ray_learngene.terminal import print_columns


def print_check(config: CheckConfig) -> None:
    """Read an image set and print what it holds and all that is odd about it.

    Raises:
        UserError: it cannot be opened, or something in it would end training; all findings are printed before.
    """
    inspection = inspect_image_sets(config)
    if config.as_json:
        print(json.dumps(asdict(inspection), indent=2, ensure_ascii=False))
    else:
        _print_inspection(inspection, config.check_images)
    refuse_errors(inspection)


def _print_inspection(inspection: Inspection, mode: str) -> None:
    for note in inspection.notes:
        print(note)
    for name, part in (("training", inspection.training), ("validation", inspection.validation)):
        each = counted(part.largest_class, "image")
        if part.smallest_class < part.largest_class:
            each = f"{part.smallest_class:,} to {each}"
        print(
            f"{name}: {counted(part.images, 'image')}, {counted(part.classes, 'class')} of {each}"
            + (f", {part.unreadable:,} unreadable" if part.unreadable else "")
        )
    total = inspection.training.images + inspection.validation.images
    if not is_full(mode, total):
        print("headers only: pixels were not decoded, duplicates not looked for (--check-images full does both)")
    rows = [
        (finding.level, finding.split, f"{finding.count:,}", finding.kind, "; ".join(finding.examples))
        for finding in inspection.findings
    ]
    if rows:
        print_columns(("", "split", "count", "finding", "for example"), rows, right=(2,))
    else:
        print("nothing wrong was found")


def print_convert(config: ConvertConfig) -> None:
    """Write an image set as Parquet shards and print what was written."""
    facts = convert(config, config.out, short_side=config.short_side, quality=config.quality)
    if facts["note"]:
        print(facts["note"])
    if facts["skipped"]:
        print(unreadable_text(facts["skipped"]))
    print(
        f"{config.out}: {facts['train']:,} training and {counted(facts['val'], 'validation image')} "
        f"in {counted(facts['shards'], 'shard')}, {facts['bytes'] / 1e6:,.1f} MB"
    )
