"""The revision that an artefact names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ray_learngene
import ray_learngene.torchvision_cpu
from ray_learngene.provenance import METHODS_GROUP, provenance


def test_the_revision_is_of_this_package_and_of_no_repository_around_it(tmp_path: Path) -> None:
    package = tmp_path / ".venv" / "ray_learngene"
    shutil.copytree(Path(ray_learngene.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".gitignore").write_text(".venv\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    said = "import ray_learngene.provenance as p; print(p.__file__, p.git_revision())"
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    environment.pop("LEARNGENE_GIT_REVISION", None)
    ran = subprocess.run([sys.executable, "-c", said], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.split() == [str(package / "provenance.py"), "None"]


def test_a_package_of_methods_that_python_finds_later_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "later-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text(f"[{METHODS_GROUP}]\nlater = later:Later\n")
    before = provenance()["versions"]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert provenance()["versions"] == {**before, "later": "1.2"}
