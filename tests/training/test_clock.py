"""What a training costs leaves out the threads that follow it."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from ray_learngene.training.clock import Clock
from ray_learngene.training.helper_threads import not_training

BURNT = 0.3


def burn(begun: threading.Event | None = None, release: threading.Event | None = None) -> None:
    while time.thread_time() < BURNT:
        sum(range(1000))
    if begun and release:
        begun.set()
        release.wait()


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="this system has no clocks of other threads")
@pytest.mark.parametrize("ended", [True, False])
def test_the_device_seconds_leave_out_a_tracker_that_has_ended_or_still_runs(ended: bool) -> None:
    clock, begun, release = Clock(torch.device("cpu")), threading.Event(), threading.Event()
    helper = threading.Thread(target=not_training()(burn), args=(begun, release))
    with clock.running():
        helper.start()
        begun.wait()
        if ended:
            release.set()
            helper.join()
    release.set()
    helper.join()
    assert 0 <= clock.spent()[1] < BURNT / 2


def test_the_device_seconds_count_threads_that_train() -> None:
    clock, helper = Clock(torch.device("cpu")), threading.Thread(target=burn)
    with clock.running():
        helper.start()
        helper.join()
    assert clock.spent()[1] >= 0.9 * BURNT
