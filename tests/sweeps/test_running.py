"""A sweep that runs twice at once, or was killed, is said."""

from pathlib import Path

import pytest

from ray_learngene import sigterm
from ray_learngene.errors import Interrupted
from ray_learngene.io import retry
from ray_learngene.io.errors import Unavailable
from ray_learngene.store.store import Store
from ray_learngene.sweeps.live_page import LivePage
from ray_learngene.sweeps.running import running, soon_over


class Clock:
    """In the place of `time`, and of the event that `Retry` waits for: nothing is waited for."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


def test_another_run_is_said_until_it_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path))
    with running(store, "s"):
        with running(store, "t"):
            pass
        assert capsys.readouterr().err == ""
        with running(store, "s"):
            assert "another run of the sweep s began at" in capsys.readouterr().err
    with running(store, "s"):
        assert capsys.readouterr().err == ""
    assert store.objects.find("sweeps") == []


def test_a_run_that_ends_leaves_the_note_of_a_later_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with running(store, "s"):
        later = running(store, "s")
        later.__enter__()
    assert store.objects.find("sweeps") == ["sweeps/s/running"]
    later.__exit__(None, None, None)
    assert store.objects.find("sweeps") == []


@pytest.mark.parametrize(
    ("error", "waited"),
    [(Interrupted(1, 2), 300), (Unavailable("no answer"), 60), (KeyboardInterrupt(), 60)],
    ids=["stopped", "unreachable", "stopped twice"],
)
def test_a_sweep_that_ends_waits_for_its_store_once(
    error: BaseException, waited: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, store = Clock(), Store(str(tmp_path))
    monkeypatch.setattr(retry, "time", clock)
    monkeypatch.setattr(sigterm, "time", clock)
    monkeypatch.setattr(store.objects.retry, "_given_up", clock)

    def refuse(*arguments: object) -> None:
        raise Unavailable("no answer")

    with (
        pytest.raises(type(error)),
        sigterm.graceful(),
        running(store, "s"),
        LivePage(store, "s", []),
        soon_over(store),
    ):
        monkeypatch.setattr(store.objects.storage, "put", refuse)
        monkeypatch.setattr(store.objects.storage, "read", refuse)
        sigterm.request()
        clock.now += 60  # in which trials try to write their checkpoints
        raise error
    assert clock.now == waited
