"""Temporary folders: a killed process leaves its own, which the next process removes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_learngene.io.folders import new_folder
from ray_learngene.io.scratch import hidden_path, scratch_folder, scratch_path

LEAVES = """
import os, signal
from ray_learngene.io.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "engine.safetensors").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
USES = "from ray_learngene.io.scratch import scratch_folder\nwith scratch_folder() as folder: print(folder)"


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    others = [tmp_path / "learngene-notes", tmp_path / f"learngene-elsewhere-1-{'0' * 32}"]
    own = tmp_path / scratch_path().name  # of a process that runs
    for folder in (*others, own):
        folder.mkdir()
    killed = subprocess.run([sys.executable, "-c", LEAVES], env=environment, stdout=subprocess.PIPE, text=True)
    left = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL and (left / "engine.safetensors").exists() and left.parent == tmp_path
    used = subprocess.run([sys.executable, "-c", USES], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert not left.exists() and not Path(used.stdout.strip()).exists()
    assert sorted(tmp_path.iterdir()) == sorted([*others, own])


def test_folders_of_one_process_differ() -> None:
    with scratch_folder() as one, scratch_folder() as other:
        assert one != other and one.is_dir() and other.is_dir() and not scratch_path().exists()
    assert not one.exists() and not other.exists()


REPLACES = """
import os, signal, sys
from pathlib import Path
from ray_learngene.io.folders import new_folder
rename, names = os.rename, []
def killed(source, target):
    rename(source, target)
    names.append(target)
    if len(names) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = killed
with new_folder(Path(sys.argv[1]), True, "mark") as folder:
    (folder / "mark").write_text("new")
    if sys.argv[2] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_what_a_killed_process_leaves_next_to_its_output_goes_with_the_next_one(renames: int, tmp_path: Path) -> None:
    out = tmp_path / "best"
    out.mkdir()
    (out / "mark").write_text("old")
    killed = subprocess.run([sys.executable, "-c", REPLACES, str(out), str(renames)])
    assert killed.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 2
    assert {path.read_text() for path in tmp_path.rglob("mark")} >= {"new" if renames == 2 else "old"}
    with new_folder(out, True, "mark") as folder:
        (folder / "mark").write_text("newest")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["newest"]
    assert list(tmp_path.iterdir()) == [out]


def test_of_other_hosts_only_what_is_old_is_removed(tmp_path: Path) -> None:
    own = hidden_path(tmp_path).name
    names = [re.sub("-[^-]+-", f"-{host}-", own, count=1) for host in ("old", "young")]
    for name in (own, *names, ".learngene-notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_text("")
    for path in (tmp_path / names[0] / "model.onnx", tmp_path / names[0], tmp_path / ".learngene-notes"):
        os.utime(path, (0, 0))
    found = subprocess.run(
        [sys.executable, "-c", f"from ray_learngene.io.scratch import *; hidden_path(Path({str(tmp_path)!r}))"]
    )
    assert found.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([own, names[1], ".learngene-notes"])
