"""Temporary folders: a killed process leaves its own, which the next process removes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from ray_learngene.io.scratch import scratch_folder, scratch_path

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
    own = tmp_path / f"learngene-{socket.gethostname()}-{os.getpid()}-{'0' * 32}"  # of a process that runs
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
