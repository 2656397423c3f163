"""A method of another package: installed by pip, found by its entry point, distilled and expanded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ray_learngene.cli.main import main
from ray_learngene.methods.registry import create_method, method_class
from ray_learngene.models.specs import preset
from tests.ancestry.teachers import save_teacher

EXAMPLE = Path(__file__).parents[2] / "examples" / "method"
PIP = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example's package is installed in."""
    source, target = tmp_path_factory.mktemp("source") / "method", tmp_path_factory.mktemp("installed")
    source.mkdir()
    for file in EXAMPLE.iterdir():  # pip builds next to the sources
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    subprocess.run([sys.executable, *PIP, str(target), str(source)], check=True)
    return target


@pytest.fixture(autouse=True)
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python finds the package."""
    monkeypatch.syspath_prepend(str(package))
    yield
    sys.modules.pop("interpolate", None)
    method_class.cache_clear()


def test_a_method_of_another_package_is_distilled_and_expanded(tmp_path: Path) -> None:
    save_teacher(tmp_path / "teacher", model_config={"label_names": [str(digit) for digit in range(10)]})
    store = ["--data", "digits", "--store", str(tmp_path / "store"), "--epochs", "1", "--batch-size", "256"]
    distil = ["--ancestry", f"local-dir:{tmp_path / 'teacher'}", "--preset", "nano", "--name", "gene", "--workers", "0"]
    sizes = ["--learngene", "gene", "--name", "sizes", "--depths", "1,4", "--arms", "interpolate", "--in-process"]
    assert main(["distill", *distil, "--method", "interpolate:anchors=2", *store]) == 0
    assert main(["sweep", *sizes, *store]) == 0
    manifest = json.loads((tmp_path / "store/learngenes/gene/manifest.json").read_text())["metadata"]
    assert (manifest["method"], manifest["options"]) == ("interpolate", {"anchors": 2})
    assert manifest["versions"]["learngene-interpolate"] == "0.1"
    assert len(list((tmp_path / "store/descendants/sizes").iterdir())) == 2


def test_its_layers_are_piecewise_linear_and_end_at_the_anchors() -> None:
    spec, method = preset("nano", depth=5), create_method("interpolate")
    learngene = method.extract(method.auxiliary(spec))
    weights = [layer.mlp.fc1.weight for layer in method.expand(learngene, spec).blocks]
    for layer, anchor in ((0, 0), (2, 1), (4, 2)):
        assert torch.equal(weights[layer], learngene.tensors[f"blocks.{anchor}.mlp.fc1.weight"])
    torch.testing.assert_close(weights[1], (weights[0] + weights[2]) / 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ImportError('no such library')", "cannot be imported: ImportError: no such library"),
        ("Interpolate = 3", "is no method with the name 'interpolate'"),
    ],
)
def test_a_package_that_is_broken_is_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "interpolate.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))  # is found before the installed one
    words = ["distill", "--data", "digits", "--ancestry", "a", "--preset", "nano", "--name", "x"]
    assert main([*words, "--method", "interpolate"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
