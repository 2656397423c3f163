"""The examples run: scripts by `make test-export`, the notebook by `make test-notebook`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import ray_learngene as lg
from tests.delivery.stores import publish_learngene

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.export
def test_the_scripts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    store = publish_learngene(tmp_path)

    def run(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    assert run("expand_sizes.py", store.uri, "gene").count("VisionTransformer") == 10
    lg.expand("gene", store=store, depth=2, out="model")
    Image.new("RGB", (30, 20), "white").save("picture.png")
    assert run("export_and_run.py", "model", "picture.png").count(" %  ") == 3
    assert "the largest model within 1000ms: " in run("fits_the_device.py", store.uri, "gene", "1000ms")


@pytest.mark.notebook
def test_the_notebook_runs_from_images_to_a_timed_model(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "your_images.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]  # they are not committed
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in results if output["output_type"] == "error"]
    texts = [output["data"]["text/plain"] for output in results if output["output_type"] == "execute_result"]
    assert any("onnx,int8" in text for text in texts) and any(" ms'" in text for text in texts)
