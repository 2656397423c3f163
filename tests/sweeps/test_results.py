"""The leaderboard of rows as sweeps of this and of earlier versions wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ray_learngene.cli.leaderboard import print_leaderboard
from ray_learngene.store.store import Store
from tests.fixtures.write_store import OLD_STORE
from tests.pages.rows import models_of, page_of

NOTE = "depth 1 is outside of 3 to 12, the depths that any-size was trained at"


def old_rows() -> list[dict[str, Any]]:
    """Return the rows of a sweep whose version did not say what lies outside of the trained sizes."""
    paths = sorted((OLD_STORE / "descendants/sizes").glob("*/manifest.json"))
    return [json.loads(path.read_text())["metadata"]["row"] for path in paths]


@pytest.mark.parametrize("noted", [False, True])
def test_a_size_that_was_not_trained_is_marked(noted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    rows = old_rows()
    if noted:
        rows = [{**row, "outside": NOTE if row["depth"] == 1 and row["arm"] == "sws" else None} for row in rows]
    print_leaderboard(rows)
    printed, models = capsys.readouterr().out, models_of(page_of(Store(str(OLD_STORE)), rows, "sizes"))
    assert (printed.count("sws *"), printed.count(f"* {NOTE}")) == (noted, noted)
    assert [(one["arm"], one["size"]) for one in models if one["outside"] == NOTE] == [("sws", "16×1")] * noted
