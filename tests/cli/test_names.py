"""Names that are made of other names: refused before anything runs, or kept short enough for every store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_learngene.cli.main import main
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.manifest import LONGEST_NAME, folder_of, run_name, shortened
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.descendant import Descendant
from tests.delivery.stores import publish_learngene

DISTILL = ["distill", "--data", "digits", "--ancestry", "levit_384", "--preset", "nano"]


@pytest.mark.parametrize(
    ("command", "most"), [(DISTILL, 118), (["ancestry", "--data", "digits"], 119)], ids=["distill", "ancestry"]
)
def test_a_name_that_is_too_long_for_its_run_leaves_nothing(
    command: list[str], most: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert main([*command, "--store", str(store), "--name", "x" * (most + 1)]) == 2
    assert f"at most {most} characters" in capsys.readouterr().err
    assert not store.exists()
    kind = "learngene" if command is DISTILL else "ancestry"
    assert len(run_name(kind, "x" * most)) == LONGEST_NAME


def test_descendants_of_a_learngene_with_a_long_name_have_names_that_every_store_holds() -> None:
    one, other = (
        Descendant(Arm.parse(f"sws@{'x' * 116}", ""), PRESETS["nano"], 0, 1e-3, key) for key in ("0a1b2c3d", "3d2c1b0a")
    )
    assert folder_of("descendant", f"s/{one.name}") and len(one.name) == LONGEST_NAME
    assert one.name.endswith("-0a1b2c3d") and one.name != other.name
    spec = PRESETS["nano"]
    assert (
        Descendant(Arm.parse("sws", ""), spec, 0, 1e-3, "0a1b2c3d").name
        == f"sws-w{spec.width}-d{spec.depth:02d}-s0-0a1b2c3d"
    )


def test_a_name_is_shortened_only_where_it_is_too_long() -> None:
    assert shortened("x" * LONGEST_NAME) == "x" * LONGEST_NAME
    one, other = shortened("x" * 140 + "a"), shortened("x" * 140 + "b")
    assert len(one) == len(other) == LONGEST_NAME and one != other


@pytest.mark.parametrize(
    "command",
    [
        ["sweep", "--name", "../x", "--learngene", "g", "--data", "digits"],
        ["show", "sweeps/.."],
    ],
    ids=["sweep", "show"],
)
def test_a_name_that_no_sweep_can_have(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store" / "sweeps").mkdir(parents=True)
    publish_learngene(tmp_path, name="g")
    assert main([*command, "--store", str(tmp_path / "store")]) == 2
    error = capsys.readouterr().err
    assert "is not the name of a sweep: write NAME in letters" in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
