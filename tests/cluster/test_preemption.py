"""How soon workers see that they are asked to stop."""

from __future__ import annotations

import itertools
import time
from collections import deque

import pytest
import ray.train
import torch

from ray_learngene.cluster.preemption import StopPoll
from ray_learngene.training.world import World


class Requests:
    """As much of a Ray queue as a poll needs."""

    def __init__(self) -> None:
        self.polls = 0
        self.waiting: deque[str] = deque()

    def empty(self) -> bool:
        self.polls += 1
        return not self.waiting


@pytest.mark.parametrize("first_step_seconds", [1e-6, 5.0])
def test_a_request_is_seen_after_at_most_as_many_steps_again(
    monkeypatch: pytest.MonkeyPatch, first_step_seconds: float
) -> None:
    """Also if steps seem to take no time, as they do before the first one: once a request waited for 661 steps."""
    clock = itertools.accumulate(itertools.chain([0.0, 0.0, first_step_seconds], itertools.repeat(1e-6)))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    for asked_after in (0, 1, 5, 40):
        requests = Requests()
        poll = StopPoll(World(torch.device("cpu")), requests)  # type: ignore[arg-type]
        for step in itertools.count():
            if poll(step):
                break
            if step == asked_after:
                requests.waiting.append("SIGTERM")
        assert step <= 2 * asked_after + 1


def test_polls_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1e-4)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    requests = Requests()
    poll = StopPoll(World(torch.device("cpu")), requests)  # type: ignore[arg-type]
    assert not any(poll(step) for step in range(5000))
    assert requests.polls < 20
