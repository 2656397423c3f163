"""The page of a sweep while it runs, written again in the background, at most every half minute.

It is written again even if nothing happens, so that a page which is old tells of a sweep that has stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

from ray_learngene.errors import UserError
from ray_learngene.pages.columns import Record, record, size_of
from ray_learngene.pages.page import SweepPage
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import PAGE, sweep_file
from ray_learngene.sweeps.trial import Trial

SECONDS = 30.0  # between two writings
IDLE = 60.0  # seconds to wait for news after that
_MAKING = 0.15  # CPU seconds: a page that takes longer to make is made less often, in proportion

log = logging.getLogger("ray_learngene")


class LivePage:
    """Follows the trials of a sweep, and writes its page until the sweep ends.

    A page that cannot be written is told once, and ends nothing.

    Args:
        before: Rows of descendants that earlier runs settled.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        before: Iterable[Mapping[str, Any]],
        seconds: float = SECONDS,
        idle: float = IDLE,
    ) -> None:
        self.store, self.name, self.seconds, self.idle = store, name, seconds, idle
        self._pause = seconds
        self._page = SweepPage(store, name)
        self._lock = threading.Lock()
        self._now: dict[Trial, dict[str, Any]] = {}
        self._ended: set[Trial] = set()
        self._records: list[Record] = []
        self._unfinished: list[Mapping[str, Any]] = []
        for row in before:
            if row["status"] == "finished":
                self._records.append(record(row))
            else:
                self._unfinished.append(row)
        self._total = len(self._records) + len(self._unfinished)
        self._changed, self._ending, self._failed = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._write_while_running, name="sweep-page", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ending.set()
        self._changed.set()
        self._thread.join()
        if error is not None:  # else the results are written next, and the page with them
            self._write(running=False)

    def started(self, count: int) -> None:
        """The first of so many trials is about to start."""
        self._total = len(self._records) + len(self._unfinished) + count
        self._changed.set()

    def reported(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """A trial has reached an epoch, or a step on the way there; this may come late, after its end."""
        with self._lock:
            if trial in self._ended:
                return
            self._now[trial] = {
                "arm": trial.arm.text,
                "size": size_of(trial.spec.model_dump()),
                "seed": trial.seed,
                "epoch": metrics["epoch"],
                "epochs": metrics.get("epochs"),
                "top1": metrics.get("top1", self._now.get(trial, {}).get("top1")),
            }
        self._changed.set()

    def finished(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """A trial's descendant is in the store."""
        with self._lock:
            self._end(trial)
            self._records.append(record(row))
        self._changed.set()

    def unfinished(self, trial: Trial, row: Mapping[str, Any]) -> None:
        """A trial ended otherwise."""
        with self._lock:
            self._end(trial)
            self._unfinished.append(row)
        self._changed.set()

    def _end(self, trial: Trial) -> None:
        self._now.pop(trial, None)
        self._ended.add(trial)

    def _write_while_running(self) -> None:
        self._changed.wait()
        while not self._ending.is_set():
            self._changed.clear()
            began = time.thread_time()
            self._write(running=True)
            self._pause = self.seconds * max(1.0, (time.thread_time() - began) / _MAKING)
            if self._ending.wait(self._pause):
                return
            self._changed.wait(self.idle)

    def _write(self, running: bool) -> None:
        with self._lock:
            records, unfinished, now = list(self._records), list(self._unfinished), list(self._now.values())
        late = round(2 * (self._pause + self.idle))
        state = {"done": len(records) + len(unfinished), "total": self._total, "now": now, "late": late}
        try:
            text = self._page.text(records, unfinished, state if running else None)
            self.store.write_text(sweep_file(self.name, PAGE), text)
        except Exception as error:  # the sweep goes on without its page
            if not self._failed:
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                log.warning("the page of the running sweep is not written: %s", reason)
            self._failed = True
