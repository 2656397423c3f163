"""A store that revision 71184e2 wrote is listed, pulled, swept from, and its unfinished runs are continued."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.command_line import learngene
from tests.fixtures.write_store import (
    ANCESTRY,
    BEGUN_DISTILLATION,
    BEGUN_SWEEP,
    DISTILL,
    FINISHED,
    LOSSES,
    OLD_STORE,
    SOFT_LABELS,
    SWEEP,
    SWS,
    without_key,
)
from tests.test_golden_losses import assert_same_losses

EXPECTED: dict[str, list[dict[str, float]]] = json.loads(LOSSES.read_text())["continued"]
SIZES = sorted(path.name for path in (OLD_STORE / "descendants/sizes").iterdir())
(KEY,) = (path.name for path in (OLD_STORE / "softlabels").iterdir())
SMALL = next(name for name in SIZES if name.startswith("sws-w16-d01"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_STORE, tmp_path / "store"))


def manifest(store: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / name / "manifest.json").read_text())
    return found


def manifests(store: Path) -> dict[str, str]:
    """Return the text of every manifest but those of checkpoints, by artefact."""
    paths = [path for path in store.glob("*/**/manifest.json") if "checkpoints" not in path.parts]
    return {str(path.parent.relative_to(store)): path.read_text() for path in paths}


def test_everything_is_listed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--rebuild",)):
        assert learngene("list", "--store", store, *more) == 0
        said = capsys.readouterr().out
        names = {name.rpartition("/")[0] if "softlabels" in name else name for name in manifests(store)}
        assert {name for name in names | {"sweeps/sizes"} if name not in said} == set()
        for name in ("ancestries/vit", "learngenes/sws", f"descendants/sizes/{SMALL}"):
            assert next(line for line in said.splitlines() if line.startswith(name)).split()[1:3] == ["digits", "10"]


@pytest.mark.parametrize(
    "artefact",
    ["ancestries/vit", "learngenes/any-size", f"descendants/sizes/{SMALL}", f"softlabels/{KEY}", "sweeps/sizes"],
)
def test_an_artefact_is_shown(store: Path, artefact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert learngene("show", artefact, "--store", store) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("artefact", ["ancestries/vit", "learngenes/any-size", f"descendants/sizes/{SMALL}"])
def test_an_artefact_is_pulled_by_name(store: Path, artefact: str, tmp_path: Path) -> None:
    assert learngene("pull", artefact, "--store", store, "--out", tmp_path / "out") == 0
    files = manifest(store, artefact)["files"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {entry["path"] for entry in files}
    for entry in files:
        assert hashlib.sha256((tmp_path / "out" / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]


def test_the_best_model_within_a_budget_is_pulled_and_works_in_timm(store: Path, tmp_path: Path) -> None:
    assert learngene("pull --max-params 5k --arm sws", "--store", store, "--out", tmp_path / "best") == 0
    (weights,) = (e for e in manifest(store, f"descendants/sizes/{SMALL}")["files"] if e["path"] == "model.safetensors")
    assert hashlib.sha256((tmp_path / "best/model.safetensors").read_bytes()).hexdigest() == weights["sha256"]
    model = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True).eval()
    logits = model(torch.rand(2, 3, 8, 8))
    assert logits.shape == (2, 10) and bool(logits.isfinite().all())
    assert learngene(f"evaluate {tmp_path / 'best'} --data digits --val-share 0.1") == 0


def test_what_is_finished_is_not_trained_again(store: Path) -> None:
    before = manifests(store)
    for command in FINISHED:
        if not command.startswith("softlabels"):  # see below
            assert learngene(command, "--store", store) == 0
    assert manifests(store) == before


def test_soft_labels_are_read(store: Path) -> None:
    (facts,) = (manifest(store, name)["metadata"]["facts"] for name in manifests(store) if "softlabels" in name)
    if facts["versions"] != {name: version(name).partition("+")[0] for name in facts["versions"]}:
        pytest.skip("other versions draw other views")
    before = manifests(store)
    assert learngene(f"softlabels {SOFT_LABELS}", "--store", store) == 0
    assert manifests(store) == before
    read = f"{DISTILL} --epochs 1 --name read --method {SWS} --soft-labels"
    assert learngene(read, "--store", store) == 0
    assert manifest(store, "learngenes/read")["metadata"]["cost"]["teacher_flops"] == 0


def test_a_sweep_goes_on_with_another_arm(store: Path) -> None:
    before = manifests(store)
    more = f"{SWEEP} --name sizes --depths 1,2 --arms sws scratch any-size@any-size"
    assert learngene(more, "--store", store) == 0
    after = manifests(store)
    assert {name: after[name] for name in before} == before
    assert sorted(Path(name).name[:16] for name in after.keys() - before.keys()) == ["any-size.any-siz"] * 2
    assert learngene("show sweeps/sizes", "--store", store) == 0


def test_exports_are_added_to_what_is_published(store: Path) -> None:
    for other in {*SIZES} - {SMALL}:
        shutil.rmtree(store / "descendants/sizes" / other)
    card = json.dumps(
        next(e for e in manifest(store, f"descendants/sizes/{SMALL}")["files"] if e["path"] == "README.md")
    )
    assert learngene(f"{SWEEP} --name sizes --depths 1 --widths 16 --arms sws --export onnx", "--store", store) == 0
    files = manifest(store, f"descendants/sizes/{SMALL}")["files"]
    assert "onnx/model.onnx" in {entry["path"] for entry in files}
    assert card in map(json.dumps, files)  # it stays, as its row lacks what a card of today says


def test_learngenes_and_models_are_used_by_new_runs(store: Path) -> None:
    assert learngene(f"{DISTILL} --name started --method {SWS} --start sws", "--store", store) == 0
    taught = DISTILL.replace("store:ancestries/vit", f"store:descendants/sizes/{SMALL}")
    assert learngene(f"{taught} --name taught --method {SWS}", "--store", store) == 0
    extract = "extract --source store:ancestries/vit --method weight-selection --name selected"
    assert learngene(extract, "--store", store) == 0
    assert (
        learngene(f"{SWEEP} --name new --depths 1 --arms sws@started weight-selection@selected", "--store", store) == 0
    )


def test_an_interrupted_distillation_is_continued(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = store.glob("checkpoints/learngene-begun/state/*/progress.json")
    progress = json.loads(path.read_text())
    assert progress["step"] > 0
    assert learngene(BEGUN_DISTILLATION, "--store", store) == 0
    assert "continuing" in capsys.readouterr().out
    assert_continued(store, "learngenes/begun", progress["history"])
    assert not (store / "checkpoints/learngene-begun/state/manifest.json").exists()
    cost = manifest(store, "learngenes/begun")["metadata"]["cost"]
    assert cost["seconds"] > progress["seconds"] and cost["device_seconds"] is None  # those of the first part are lost


def test_an_interrupted_sweep_is_continued(store: Path) -> None:
    begun = {path.parts[-3]: json.loads(path.read_text()) for path in store.glob("checkpoints/begun/*/*/progress.json")}
    assert len(begun) == 2 and all(progress["step"] > 0 for progress in begun.values())
    assert learngene(BEGUN_SWEEP, "--store", store) == 0
    for name, progress in begun.items():
        assert_continued(store, f"descendants/begun/{name}", progress["history"])


def assert_continued(store: Path, name: str, before: list[dict[str, float]]) -> None:
    """The history begins with the checkpoint's, measured seconds included, and ends as without an interruption."""
    history = manifest(store, name)["metadata"]["history"]
    assert 0 < len(before) < len(history) and history[: len(before)] == before
    assert_same_losses(history, EXPECTED[without_key(name)])


def test_settings_that_changed_are_still_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learngene(ANCESTRY, "--store", store, "--epochs", 5) == 2
    assert learngene(BEGUN_DISTILLATION, "--store", store, "--lr", 0.1) == 2
    assert learngene(BEGUN_SWEEP, "--store", store, "--lr", 0.1) == 2
    # nothing else is said: what is refused is not timed first, which would warn on a busy machine
    assert [line.split(":")[:2] for line in capsys.readouterr().err.splitlines()] == [["learngene", " error"]] * 3


def test_gc_removes_nothing_that_is_needed(store: Path) -> None:
    before = manifests(store)
    assert learngene("gc --min-age 0m --force --delete", "--store", store) == 0
    assert manifests(store) == before
