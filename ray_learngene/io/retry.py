"""Retry requests to a storage that does not answer or fails, with growing random pauses."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ray_learngene.io.errors import Unavailable

RETRY_SECONDS = 300.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
QUIET_SECONDS = 2.0  # a hiccup that is over sooner is not worth a line

T = TypeVar("T")

log = logging.getLogger(__name__)


class Retry:
    """Retries what raises `Unavailable` until it works or the time is over; shared by the threads of one store."""

    def __init__(self, seconds: float = RETRY_SECONDS, only_answers: bool = False) -> None:
        """Retry for `seconds`; with `only_answers` a server that says nothing is not asked again."""
        self.seconds = seconds
        self._only_answers = only_answers
        self._until = math.inf
        self._told = False
        self._given_up = threading.Event()

    def wait_for(self, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`, which is called again and again while the storage is not available.

        Raises:
            Unavailable: It still was not when the time was over, or `give_up` or `end_within` ended the waiting.
        """
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                result = attempt()
            except Unavailable as error:
                now = time.monotonic()
                waited, left = now - began, min(began + self.seconds, self._until) - now
                if left <= 0 or (self._only_answers and not error.answered):
                    raise
                if waited >= min(QUIET_SECONDS, self.seconds / 2):
                    self._tell(error)
                # Half of the pause is random: those whom one failure stopped must not all come back at once.
                wait = min(error.retry_after + pause * random.uniform(0.5, 1.0), left)
                if self._given_up.wait(wait):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._told_is_over()
                return result

    def end_within(self, seconds: float) -> None:
        """Wait no longer than so many seconds from now on, for all requests together."""
        self._until = min(self._until, time.monotonic() + seconds)

    def give_up(self) -> None:
        """End all waiting: the results are no longer needed."""
        self._given_up.set()

    def resume(self) -> None:
        """Wait again after `give_up`."""
        self._given_up.clear()

    def _tell(self, error: Unavailable) -> None:
        if not self._told:
            self._told = True
            log.warning("%s; waiting up to %.0f s for it", error.condition, self.seconds)

    def _told_is_over(self) -> None:
        if self._told:
            self._told = False
            log.warning("the storage answers again")
