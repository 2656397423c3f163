"""Descendants in this process: one alone, or several that see the same views side by side. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray_learngene import termination
from ray_learngene.ancestry import Ancestry
from ray_learngene.config import SweepConfig
from ray_learngene.data.images import Images
from ray_learngene.descend import Tuning, Upbringing, descendant_stream
from ray_learngene.device import resolve_device
from ray_learngene.errors import Interrupted, RunError
from ray_learngene.out_of_memory import is_out_of_memory, release_memory, within_memory
from ray_learngene.stream import feed
from ray_learngene.turns import Clock, Sibling, train_together

Row = dict[str, Any]
Ended = Callable[[Tuning, Row | RunError], None]


def train_descendant(tuning: Tuning, images: Images, config: SweepConfig, ancestry: Ancestry | None = None) -> Row:
    """Train one descendant from where its last checkpoint left it, and publish it.

    Args:
        ancestry: Its teacher; None where it learns from labels alone.

    Returns:
        Its row of the results table.

    Raises:
        Interrupted: SIGTERM came; a checkpoint holds what is done.
        RunError: training cannot go on.
    """
    began = time.monotonic()

    def attempt(settings: SweepConfig) -> Row:
        seconds = config.checkpoint_seconds
        one = Upbringing(tuning, images, settings, ancestry, seconds, lambda: time.monotonic() - began)
        with termination.graceful():
            return feed(one.run(), descendant_stream(images, settings, ancestry), stop=termination.requested)

    return within_memory(attempt, tuning.settings(config), tell=lambda text: tuning.report({"message": text}))


def train_siblings(
    tunings: Sequence[Tuning], images: Images, config: SweepConfig, ancestry: Ancestry | None, ended: Ended
) -> None:
    """Train descendants that see the same views side by side, and publish each as it finishes.

    The results are those of `train_descendant`, bit for bit on the CPU. One that runs out of memory is trained alone
    when the others have ended.

    Args:
        tunings: Of one seed of views.
        ended: Called with each and its row, or why it cannot go on.

    Raises:
        Interrupted: SIGTERM came; checkpoints hold what is done.
        Exception: what ended one and may not do so another time; the others have ended before.
    """
    unexpected: list[Exception] = []
    for tuning in tunings if len(tunings) == 1 else _together(tunings, images, config, ancestry, ended, unexpected):
        try:
            ended(tuning, train_descendant(tuning, images, config, ancestry))
        except Interrupted:
            raise
        except RunError as error:
            ended(tuning, error)
        except Exception as error:
            unexpected.append(error)
    if unexpected:
        raise unexpected[0]


def _together(
    tunings: Sequence[Tuning],
    images: Images,
    config: SweepConfig,
    ancestry: Ancestry | None,
    ended: Ended,
    unexpected: list[Exception],
) -> list[Tuning]:
    """Train descendants in turns; returns those that need the memory for themselves."""
    device = resolve_device()
    # a checkpoint of all costs so many times that of one; the best time between two grows by the root (Young, 1974)
    seconds = config.checkpoint_seconds * len(tunings) ** 0.5
    tuning_of: dict[Sibling[Row], Tuning] = {}
    for tuning in tunings:
        clock = Clock(device)
        one = Upbringing(tuning, images, tuning.settings(config), ancestry, seconds, clock)
        tuning_of[Sibling(one.run(), clock)] = tuning
    interrupted: list[Interrupted] = []
    alone: list[Tuning] = []

    def sort_out(sibling: Sibling[Row]) -> None:
        tuning, error = tuning_of[sibling], sibling.error
        if error is None:
            assert sibling.result is not None
            ended(tuning, sibling.result)
        elif isinstance(error, Interrupted):
            interrupted.append(error)
        elif is_out_of_memory(error):
            release_memory()
            alone.append(tuning)
        elif isinstance(error, RunError):
            ended(tuning, error)
        else:
            unexpected.append(error)

    with termination.graceful():
        try:
            stream = descendant_stream(images, tunings[0].settings(config), ancestry)
        except RunError as error:
            for tuning in tunings:
                ended(tuning, error)
            return []
        train_together(tuning_of, stream, sort_out, stop=termination.requested)
        if interrupted:
            raise min(interrupted, key=lambda one: one.done)
    return alone
