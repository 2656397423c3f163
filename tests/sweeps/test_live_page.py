"""The page of a sweep while it runs."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.methods.scratch import Scratch
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.store import Store
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.live_page import LivePage
from ray_learngene.sweeps.trial import Trial
from tests.pages.rows import data_of, models_of, row

PATH = "sweeps/photos/leaderboard.html"
TRIAL = Trial(Arm("scratch", Scratch(), None), PRESETS["nano"], seed=1, lr=0.01)
METRICS = {"epoch": 1.0, "epochs": 5, "step": 9, "top1": 41.5}


class Watched(LivePage):
    """Says when a page has been written, and how many were."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.written, self.count = threading.Event(), 0

    def _write(self, running: bool) -> None:
        super()._write(running)
        self.count += 1
        self.written.set()


@pytest.fixture
def store(tmp_path: Any) -> Store:
    return Store(str(tmp_path / "store"))


def page(store: Store) -> str:
    text = store.read_text(PATH)
    assert text is not None
    return text


def test_a_page_shows_what_runs_and_then_what_came_of_it(store: Store) -> None:
    earlier = [row(seed=7), row(seed=8) | {"status": "stopped"}]
    with pytest.raises(KeyboardInterrupt), Watched(store, "photos", earlier) as live:
        live.started(3)
        assert live.written.wait(60)
        state = data_of(page(store))["sweeps"]["photos"]["running"]
        assert state == {"done": 2, "total": 5, "now": [], "late": 180}
        live.reported(TRIAL, METRICS)
        live.reported(TRIAL, {"epoch": 1.5, "epochs": 5, "step": 12})
        live._write(running=True)
        (now,) = data_of(page(store))["sweeps"]["photos"]["running"]["now"]
        assert now == {"arm": "scratch", "size": "48×16", "seed": 1, "epoch": 1.5, "epochs": 5, "top1": 41.5}
        live.finished(TRIAL, row(seed=1))
        live.reported(TRIAL, METRICS)  # late
        live._write(running=True)
        assert data_of(page(store))["sweeps"]["photos"]["running"]["now"] == []
        live.unfinished(TRIAL, row(seed=2) | {"status": "failed", "error": "no memory"})
        raise KeyboardInterrupt
    sweep = data_of(page(store))["sweeps"]["photos"]
    assert sweep["running"] is None and [one["status"] for one in sweep["unfinished"]] == ["stopped", "failed"]
    assert sorted(model["seed"] for model in models_of(page(store))) == [1, 7]


def test_between_two_pages_is_half_a_minute(store: Store) -> None:
    with Watched(store, "photos", []) as live:
        live.started(1)
        assert live.written.wait(60)
        for epoch in range(100):
            live.reported(TRIAL, METRICS | {"epoch": epoch})
    assert live.count == 1


def test_a_page_is_written_again_although_nothing_happens(store: Store) -> None:
    with Watched(store, "photos", [], seconds=0, idle=0.01) as live:
        live.started(1)
        for _ in range(3):
            assert live.written.wait(60)
            live.written.clear()


@pytest.mark.parametrize(
    ("error", "said"), [(UserError("the disk is full"), "the disk is full"), (KeyError("x"), "KeyError: 'x'")]
)
def test_a_page_that_cannot_be_written_is_told_once(
    error: Exception, said: str, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str, text: str) -> None:
        raise error

    monkeypatch.setattr(store, "write_text", refuse)
    with caplog.at_level(logging.WARNING), Watched(store, "photos", [], seconds=0) as live:
        for _ in range(3):
            live.written.clear()
            live.started(1)
            assert live.written.wait(60)
    assert [record.getMessage() for record in caplog.records] == [
        f"the page of the running sweep is not written: {said}"
    ]
