"""A sweep that runs twice at once, or was killed, is said."""

from pathlib import Path

import pytest

from ray_learngene.store.store import Store
from ray_learngene.sweeps.running import running


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
