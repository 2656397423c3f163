"""A distillation that revision 71184e2 began with workers on Ray is continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.command_line import learngene
from tests.fixtures.write_store import BEGUN_ON_RAY, OLD_STORE
from tests.test_old_store import assert_continued


def test_an_interrupted_distillation_on_ray_is_continued(head: tuple[str, str], tmp_path: Path) -> None:
    store = Path(shutil.copytree(OLD_STORE, tmp_path / "store"))
    run = store / "runs/learngene-begun-on-ray"
    latest = json.loads((run / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
    progress = json.loads((run / latest["checkpoint_dir_name"] / "progress.json").read_text())
    assert learngene(BEGUN_ON_RAY, "--store", store, "--address", head[0]) == 0
    assert_continued(store, "learngenes/begun-on-ray", progress["history"])
