"""Progress of long work, as log records that a terminal can show as bars."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LINE_SECONDS = 10.0  # between lines
EPOCH_SECONDS = 5.0  # between lines of epochs
BAR_SECONDS = 0.5  # between two states of a bar
SETTLED_SECONDS = 5.0  # a rate of less time says nothing about the time left

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bar:
    """What a terminal draws instead of a record's text.

    Attributes:
        what: Names the work; a later bar of the same name replaces this one.
        done: From 0 to 1; 1 ends the bar.
        text: Shown after the bar.
    """

    what: str
    done: float
    text: str


class Progress:
    """Logs the progress of one piece of work: a line every ten seconds at most, and more often for a bar.

    Args:
        total: Of the unit; 0 where it is not known.
        unit: Empty to show neither number nor rate.
        quiet: Log bars only, because the work logs lines of its own.
        warms_up: What is done first takes longer, as the first step of a training does. The rate leaves it out.
    """

    def __init__(self, what: str, total: float, unit: str, *, quiet: bool = False, warms_up: bool = False) -> None:
        self.what, self.total, self.unit, self.quiet, self.warms_up = what, total, unit, quiet, warms_up
        self.done = 0.0
        self._began = self._drawn = self._told = time.monotonic()
        self._first: float | None = None  # done before the clock started
        self._lock = threading.Lock()

    def advance(self, by: float = 1) -> None:
        """Add what was done since the last call; from any thread."""
        with self._lock:
            self._at(self.done + by)

    def at(self, done: float, note: str = "", more: str = "") -> None:
        """Set what is done. The rate leaves out what was done before the first call, and the time of the start-up.

        Args:
            more: For a line; a bar has no room for it.
        """
        with self._lock:
            if self._first is None or done <= self._first or (self.warms_up and not self._first):
                self.start(done)
            self._at(done, note, more)

    def start(self, done: float) -> None:
        """Start the clock, also again: the rate is that of what follows."""
        self._first, self._began = done, time.monotonic()

    def skip(self, by: float) -> None:
        """Leave out of the rate what an earlier run did; the next call of `at` counts it as done."""
        with self._lock:
            self._first = (self._first or 0) + by

    def _at(self, done: float, note: str = "", more: str = "") -> None:
        self.done, now = done, time.monotonic()
        told = not self.quiet and now - self._told >= LINE_SECONDS
        if told or now - self._drawn >= BAR_SECONDS:
            self._drawn = now
            text = "   ".join(filter(None, [self._count(), note, *self._pace()]))
            line = "   ".join(filter(None, [text, more]))
            bar = Bar(self.what, min(done / self.total, 0.999) if self.total else 0.0, text)
            log.log(logging.INFO if told else logging.DEBUG, "%s: %s", self.what, line, extra={"bar": bar})
        if told:
            self._told = now

    def _pace(self) -> Iterator[str]:
        rate = self.rate()
        if rate and self.unit:
            yield rate_text(rate, self.unit)
        if left := self.left():
            yield f"{left} left"

    def rate(self) -> float:
        """Return the units a second in this run; 0 where it is not known yet."""
        seconds = time.monotonic() - self._began
        return (self.done - (self._first or 0)) / seconds if seconds > 0 else 0.0

    def left(self) -> str:
        """Return the time left; empty where it is not known yet."""
        rate, seconds = self.rate(), time.monotonic() - self._began
        known = self.total and rate > 0 and seconds >= SETTLED_SECONDS
        return duration_text(max(0.0, self.total - self.done) / rate) if known else ""

    def _count(self) -> str:
        of = f" of {self._number(self.total)}" if self.total else ""
        return f"{self._number(self.done)}{of} {self.unit}" if self.unit else ""

    def _number(self, value: float) -> str:
        return f"{value:,.1f}" if self.unit == "MB" else f"{value:,.0f}"

    def end(self) -> None:
        """Remove the bar."""
        log.debug("%s: ended", self.what, extra={"bar": Bar(self.what, 1, "")})

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


class TrainingProgress:
    """Logs what a trainer reports: the first and the last epoch, between them a line every few seconds, and a bar."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._printed = float("-inf")
        self._bar: Progress | None = None
        self._expected = False

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        if self._bar is None:
            self._bar = Progress(self.what, metrics["total_steps"], "steps", quiet=True, warms_up=True)
        bar, now, last = self._bar, time.monotonic(), metrics["step"] == metrics["total_steps"]
        bar.at(metrics["step"], f"epoch {metrics['epoch']:.2f} of {metrics['epochs']}")
        if metrics.get("continued"):  # workers have started again
            bar.start(metrics["step"])
        left = "" if last else bar.left()
        if not self._expected and left:
            self._expected = True
            log.info(f"{self.what}: about {left} to go")
        if "lr" in metrics and (now - self._printed >= EPOCH_SECONDS or last):
            log.info(progress_line(metrics) + (f"   {left} left" if left else ""))
            self._printed = now
        if last:
            bar.end()


LOSSES = ("loss", "distill_loss", "label_loss", "map_loss", "vector_loss")
SCORES = {"top1": "top-1", "knn": "kNN", "linear": "linear probe"}


def scores_text(metrics: Mapping[str, float]) -> str:
    """Return the scores of a model in a few words."""
    scores = [f"{title} {metrics[name]:.2f} %" for name, title in SCORES.items() if name in metrics]
    return ", ".join(scores) or f"validation loss {metrics['val_loss']:.4f}"


def progress_line(metrics: Mapping[str, Any]) -> str:
    """Return one line for the end of an epoch, or a step on the way there."""
    parts = [f"epoch {metrics['epoch']:6.2f} / {metrics['epochs']}"]
    parts += [f"{name.replace('_', ' ')} {metrics[name]:.4f}" for name in LOSSES if name in metrics]
    if metrics["step"]:
        parts.append(f"lr {metrics['lr']:.2e}")
    parts += [f"{title} {metrics[name]:6.2f} %" for name, title in SCORES.items() if name in metrics]
    parts += [
        f"average's {title} {metrics[f'ema_{name}']:6.2f} %"
        for name, title in SCORES.items()
        if f"ema_{name}" in metrics
    ]
    if metrics["step"]:
        parts.append(f"{metrics['images_per_second']:,.0f} images/s")
    return "   ".join(parts)


def counted(number: Any, noun: str) -> str:
    """Return a number with its noun: `1 epoch`, `1,200 images`, `2 classes`."""
    plural = f"{noun}es" if noun.endswith(("tch", "s", "x")) else f"{noun}s"
    shown = f"{number:,}" if isinstance(number, int | float) else str(number)  # a row may hold none
    return f"{shown} {noun if number == 1 else plural}"


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units, as `1 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole < 600 else "")
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return counted(round(minutes / 1440), "day")


def rate_text(rate: float, unit: str) -> str:
    """Return a rate in the time in which at least one is done."""
    for each, name in ((1, "s"), (60, "min"), (3600, "h")):
        if rate * each >= 1:
            return f"{rate * each:,.0f} {unit}/{name}"
    return f"{rate * 86400:,.1f} {unit}/day"
