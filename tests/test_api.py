"""The Python API on a small store: the same functions as the command line's, with keywords."""

from __future__ import annotations

import ast
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ray_learngene as lg
from tests.data.image_files import write_class_folders
from tests.fixtures.write_store import OLD_STORE


@pytest.fixture
def store(tmp_path: Path) -> lg.Store:
    return lg.Store(str(shutil.copytree(OLD_STORE, tmp_path / "store")))


def test_a_pulled_model_is_plain_timm_with_its_transform(store: lg.Store, tmp_path: Path) -> None:
    model, transform = lg.pull(store, max_params=4000, out=tmp_path / "best").load()
    assert type(model).__module__.startswith("timm.") and not model.training
    assert model(transform(Image.new("RGB", (8, 8)))[None]).shape == (1, 10)
    with pytest.raises(lg.UserError, match="^none of 4 descendants is within params<=3: "):
        lg.pull(store, max_params=3)


def test_from_an_ancestry_to_a_table(store: lg.Store, tmp_path: Path) -> None:
    images = {"data": "digits", "train_share": 0.1, "val_share": 0.1, "batch_size": 64}
    gene = lg.distill(
        ancestry="store:ancestries/vit",
        store=store,
        name="gene",
        preset="nano",
        width=16,
        depth=2,
        method="sws:stages=1-1",
        epochs=1,
        warmup_epochs=0,
        workers=0,
        **images,
    )
    assert gene.name == "gene" and gene.metrics["top1"] >= 0
    plan = lg.plan(gene, depths=[1, 2], epochs=1, batch_size=64)
    assert [candidate.spec.depth for candidate in plan.selection.specs] == [2, 1]
    table = lg.sweep(gene, depths=[1, 2], arms="sws", epochs=1, batch_size=64, in_process=True)
    assert list(table["depth"].sort_values()) == [1, 2] and set(table["sweep"]) == {"gene"}
    pulled = lg.pull(store, sweep="gene", out=tmp_path / "best")
    best = table.sort_values(["top1", "params"], ascending=[False, True]).iloc[0]
    scores = lg.evaluate(pulled, data="digits", val_share=0.1)
    assert scores.top1 == pytest.approx(best["top1"])


def test_a_sweep_finds_the_folder_that_its_learngene_was_trained_on(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_class_folders(tmp_path / "far" / "photos" / split, {"cat": 4, "dog": 4})
    gene = lg.distill(
        data=tmp_path / "far" / "photos",
        alpha=0,
        store=tmp_path / "store",
        name="gene",
        preset="nano",
        depth=2,
        method="sws:stages=1-1",
        epochs=0,
        batch_size=4,
        workers=0,
    )
    assert repr(gene) == f"Artefact(learngene 'gene', version {gene.manifest.version}, in {gene.store.uri!r})"
    assert gene.manifest.metadata["config"]["data"] == "photos"  # others need not know where
    assert lg.plan(gene, depths=2, epochs=1, batch_size=4).selection.specs[0].spec.depth == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lg.distill(data="digits", preset="nano", name="x"), r"^ancestry is required: the ancestry model"),
        (
            lambda: lg.distill(ancestry="a", data="d", preset="nano", name="x", epoch=3),
            r"^epoch: no such .* mean epochs",
        ),
        (lambda: lg.pull("s3:/bucket", max_params="1M"), r"^store: write s3://bucket"),
        (lambda: lg.Store("s3:/bucket"), r"^store 's3:/bucket': write s3://bucket"),
        (lambda: lg.Store(3), r"^store 3: expected str, bytes or os.PathLike object"),
        (
            lambda: lg.sweep("gene", data="d", name="x", budgets=8_000_000),
            r"^budget '8000000': .* for example \"params<=3M",
        ),
        (
            lambda: lg.sweep("gene", data="d", name="x", budgets={"params": 8}),
            r"^budgets: expected a list, got {'params",
        ),
        (lambda: lg.sweep("gene", data="d", name="x", seeds="two"), r"^seeds: expected a whole number, got 'two'"),
        (lambda: lg.measure(5), r"^5 is no ONNX file"),
        (
            lambda: lg.sweep("gene", data="digits", name="x", in_process=True, callbacks=[object()]),
            "^callbacks are Ray Tune's: leave in_process out",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_keyword(call: object, message: str) -> None:
    with pytest.raises(lg.UserError, match=message) as error:
        call()  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_pulling_imports_neither_torch_nor_ray() -> None:
    program = "import sys, ray_learngene as lg; lg.pull; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "timm", "ray", "pandas"} & set(loaded)


@pytest.mark.parametrize("artefact", ["learngenes/sws", "descendants/sizes/*", "sweeps/sizes"])
def test_showing_needs_neither_torch_nor_pandas(artefact: str) -> None:
    artefact = next(str(path.relative_to(OLD_STORE)) for path in OLD_STORE.glob(artefact))
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'ray', 'pandas'])); "
        f"from ray_learngene.cli.main import main; sys.exit(main({['show', artefact, '--store', str(OLD_STORE)]}))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_editors_see_every_keyword() -> None:
    program = Path(__file__).parents[1] / "docs" / "api_stub.py"
    written = runpy.run_path(str(program))
    assert ast.dump(ast.parse(written["stub"]())) == ast.dump(ast.parse(written["STUB"].read_text())), (
        "run `python docs/api_stub.py` and format what it writes"
    )
