"""`learngene data check` and `learngene data convert`."""

from __future__ import annotations

import numpy as np

from ray_learngene.config import CheckConfig, ConvertConfig
from ray_learngene.data.convert import convert
from ray_learngene.data.pipeline import checked_image_sets
from ray_learngene.terminal import unreadable_text


def print_check(config: CheckConfig) -> None:
    """Read an image set and print what it holds; what is wrong with it is an error that names it."""
    sets = checked_image_sets(config)
    for name, part in (("training", sets.train), ("validation", sets.val)):
        counts = np.bincount(part.labels, minlength=len(part.classes))
        print(
            f"{name}: {len(part):,} images, {len(part.classes)} classes of {counts.min():,} to {counts.max():,} images"
        )


def print_convert(config: ConvertConfig) -> None:
    """Write an image set as Parquet shards and print what was written."""
    facts = convert(config, config.out, short_side=config.short_side, quality=config.quality)
    if facts["note"]:
        print(facts["note"])
    if facts["skipped"]:
        print(unreadable_text(facts["skipped"]))
    print(
        f"{config.out}: {facts['train']:,} training and {facts['val']:,} validation images "
        f"in {facts['shards']} shards, {facts['bytes'] / 1e6:,.1f} MB"
    )
