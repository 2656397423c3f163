"""`pip install ray_learngene` alone, in an environment of its own: list, show and pull without torch and Ray."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.write_store import OLD_STORE

pytestmark = pytest.mark.client
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the package and what its metadata ask for."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("client")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ray_learngene", source / "ray_learngene", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", str(source), *constraints(source)], check=True)
    return interpreter


def test_nothing_of_training_is_installed(python: Path) -> None:
    names = {each["name"].lower() for each in json.loads(run(python, "-m", "pip", "list", "--format", "json").stdout)}
    assert not names & {"torch", "timm", "ray", "deepspeed", "pandas", "torchvision"}
    assert {"ray_learngene", "ray-learngene"} & names


def test_the_client_lists_shows_and_pulls(python: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(OLD_STORE, store)
    at = ("--store", str(store))
    listed = learngene(python, "list", *at)
    assert listed.returncode == 0 and "learngenes/sws" in listed.stdout and "sweeps/sizes" in listed.stdout
    shown = learngene(python, "show", "learngenes/sws", *at)
    assert shown.returncode == 0 and "sws" in shown.stdout
    board = learngene(python, "show", "sweeps/sizes", *at)
    assert board.returncode == 0 and "final top-1 %" in board.stdout, board.stderr
    pulled = learngene(python, "pull", *at, "--max-params", "1M", "--out", str(tmp_path / "model"))
    assert pulled.returncode == 0, pulled.stderr
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"config.json", "model.safetensors"}
    program = f"import ray_learngene as lg; print(lg.pull({str(store)!r}, 'learngenes/sws', out='gene').path)"
    assert run(python, "-c", program, cwd=tmp_path).stdout.strip().endswith("gene")
    assert (tmp_path / "gene" / "learngene.safetensors").is_file()


def test_a_command_that_trains_says_what_to_install(python: Path) -> None:
    words = ["--data", "digits", "--ancestry", "a", "--preset", "nano", "--name", "x"]
    refused = learngene(python, "distill", *words)
    assert refused.returncode == 2 and "pip install 'ray_learngene[train]'" in refused.stderr
    assert refused.stderr.count("\n") == 1


def constraints(source: Path) -> list[str]:
    """pip's options for the versions that everything else is tested with; constraints cannot name extras."""
    lines = [line for line in (source / "requirements.txt").read_text().splitlines() if "[" not in line]
    (source / "constraints.txt").write_text("\n".join(lines) + "\n")
    return ["--constraint", str(source / "constraints.txt")]


def learngene(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(python, "-m", "ray_learngene", *words, check=False)


def run(python: Path, *words: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, *words], capture_output=True, text=True, check=check, cwd=cwd or python.parent, env=environment
    )
