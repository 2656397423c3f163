"""Every module imports; the science never imports the cluster; the command line stays light."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
import ray_learngene

MODULES = [module.name for module in pkgutil.walk_packages(ray_learngene.__path__, "ray_learngene.")]
SCIENCE = [
    name
    for name in MODULES
    if re.match(r"ray_learngene\.(config|models|methods|data|training)\.", name)
    and not name.endswith("deepspeed_engine")
]


def loaded_by(statement: str, more: str = "pass") -> set[str]:
    """Return the modules that a statement loads in a process of its own, which then does more."""
    program = f"import sys; {statement}; print(*sys.modules); {more}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def importing(names: list[str]) -> str:
    return "; ".join(f"import {name}" for name in names)


def test_everything_imports_and_the_science_knows_neither_ray_nor_deepspeed_nor_the_store() -> None:
    """In one process, because torch and timm take most of the time: the science first, then every module."""
    names = [name for name in MODULES if not name.endswith("__main__")]
    names += [module.name for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks.")]
    names.remove("benchmarks.image_formats_writers")  # its formats' own packages are not installed
    loaded = loaded_by(importing(SCIENCE), importing(names))
    assert "timm.utils.summary" in loaded
    assert not loaded & {
        "ray",
        "deepspeed",
        "botocore.session",
        "ray_learngene.store.store",
        "ray_learngene.io.objects",
    }


def test_timm_imports_wandb_when_it_first_uses_it(tmp_path: Path) -> None:
    """W&B makes folders in TMPDIR when it is imported, which a killed process leaves."""
    (tmp_path / "wandb.py").write_text("logged = []\nlog = logged.append\n")
    program = f"""
sys.path.insert(0, {str(tmp_path)!r})
import ray_learngene.data, timm.utils
assert "wandb" not in sys.modules
timm.utils.update_summary(1, {{}}, {{}}, {str(tmp_path / "summary.csv")!r}, log_wandb=True)
import wandb
assert wandb.logged == [{{"epoch": 1}}]"""
    assert "wandb" in loaded_by(f"exec({program!r})")


@pytest.mark.parametrize("module", ["ray_learngene", "ray_learngene.cli.main"])
def test_the_command_line_imports_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", "timm", "ray", "pyarrow", "pandas", "pydantic", "numpy"}


@pytest.mark.parametrize("argv", [["list"], ["pull", "--max-params", "3M"]])
def test_list_and_pull_import_no_family(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    command = [*argv, "--store", str(tmp_path / "store")]
    ran = f"import contextlib, ray_learngene.cli.main as cli\nwith contextlib.suppress(SystemExit): cli.main({command})"
    loaded = loaded_by(f"exec({ran!r})")
    assert {"ray_learngene.store.store", "ray_learngene.cli.main"} <= loaded
    assert not {name for name in loaded if name.startswith(("timm", "torch", "ray_learngene.models.families"))}


def test_the_thin_client_needs_nothing_that_only_unix_has() -> None:
    unix = ("fcntl", "grp", "pwd", "resource", "termios")
    others = "import filelock, s3fs, pyarrow.fs, rich.progress"  # know what to do without
    commands = ", ".join(f"ray_learngene.cli.{name}" for name in ("main", "pull", "catalog", "show", "output"))
    loaded_by(f"{others}; sys.modules.update(dict.fromkeys({unix})); import {commands}")


def test_the_configurations_import_no_torch() -> None:
    assert "torch" not in loaded_by("import ray_learngene.config")


@pytest.mark.parametrize("module", ["cli.catalog", "pages.page", "cli.gc"])
def test_commands_that_only_read_a_store_import_no_torch(module: str) -> None:
    """`list`, `show`, `pull` and `gc` answer at once."""
    assert not loaded_by(f"import ray_learngene.{module}") & {"torch", "timm", "ray", "pandas"}
