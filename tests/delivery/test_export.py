"""Exports compute what the timm model computes, or do not appear; they say nothing about the machine."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.models import register_model, save_for_hf
from torch import Tensor, nn

import ray_learngene as lg
from ray_learngene.config import ExportConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.delivery import export as module
from ray_learngene.delivery import onnx_file
from ray_learngene.delivery.parity import compare
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import timm_arguments
from ray_learngene.models.origin import Origin
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.provenance import provenance
from tests.command_line import learngene
from tests.delivery.stores import DIGITS, PREPROCESSING, SPEC, publish_learngene

ROOT = Path(__file__).parents[2]


def model_folder(folder: Path, depth: int = 1) -> Path:
    spec = SPEC.replace(depth=depth)
    torch.manual_seed(0)
    model = create_method("scratch").expand(None, spec)
    nn.init.normal_(model.head.weight)  # so that decisions are not close
    export_timm(model, folder, labels=DIGITS, preprocessing=PREPROCESSING, model_args=timm_arguments(spec))
    return folder


def holds(path: Path, text: str) -> bool:
    """Return whether a text is in a file, or in a file of an archive."""
    data = path.read_bytes()
    parts = [data]
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(path) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    return any(text.encode() in part for part in parts)


def test_onnx_int8_and_torch_of_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder(tmp_path / "model")
    os.mkfifo(folder / "metrics.json")  # a pipe without a writer
    command = f"export {folder} --format onnx,int8,torch --data digits --val-share 0.3 --out {tmp_path / 'out'}"
    assert learngene(command) == 0
    assert capsys.readouterr().out.count("exported ") == 3
    expected = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for format in ("onnx", "int8", "torch"):
        path = tmp_path / "out" / format
        facts = json.loads((path / "export.json").read_text())
        assert facts["compared"]["top1"] is not None and facts["labels"] == list(DIGITS)
        assert facts["compared"]["images"] == 108 and facts["precision"] == ("int8" if format == "int8" else "fp32")
        golden = np.load(path / "golden.npz")
        assert np.abs(expected(torch.from_numpy(golden["inputs"])).detach().numpy() - golden["timm"]).max() < 1e-5
        if format != "int8":
            assert facts["compared"]["max_difference"] <= 1e-4 and facts["compared"]["agreement"] == 100
            assert np.abs(golden["logits"] - golden["timm"]).max() <= 1e-4
        texts = {str(ROOT), str(Path(torch.__file__).parents[1]), str(Path.home()), str(tmp_path)}
        assert not [(file.name, text) for file in path.iterdir() for text in texts if holds(file, text)]
    fp32, int8 = (tmp_path / "out" / format / "model.onnx" for format in ("onnx", "int8"))
    assert {one.domain: one.version for one in onnx.load(fp32).opset_import}[""] == 20
    assert any("Integer" in node.op_type for node in onnx.load(int8).graph.node)
    for path in (fp32, int8):
        session = onnxruntime.InferenceSession(path)
        told = json.loads(session.get_modelmeta().custom_metadata_map["learngene"])
        assert told["labels"] == list(DIGITS) and told["preprocessing"]["mean"] == [0.4] * 3
        assert told["spec"] == SPEC.replace(depth=1).model_dump(mode="json")
        shapes = [session.run(None, {"images": np.zeros((batch, 3, 8, 8), np.float32)})[0].shape for batch in (1, 5)]
        assert shapes == [(1, 10), (5, 10)]
        assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]


def test_a_file_that_computes_otherwise_names_the_first_layer_and_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = onnx_file.to_onnx

    def broken(*arguments: Any) -> Any:
        proto = convert(*arguments)
        weight = next(one for one in proto.graph.initializer if one.name.endswith("mlp.fc1.bias"))
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
        return proto

    monkeypatch.setattr(onnx_file, "to_onnx", broken)
    folder = model_folder(tmp_path / "model")
    message = r"does not compute what the timm model computes: image 0 of 8 differs, .* first in layer blocks.0.mlp.fc1"
    with pytest.raises(lg.UserError, match=message):
        lg.export(folder, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_missing_package_is_one_line_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._PACKAGES, "onnx", ("onnx", "no_such_package"))
    with pytest.raises(
        lg.UserError, match=r"^export to onnx needs no_such_package: pip install 'ray_learngene\[export\]'$"
    ):
        lg.export(tmp_path, format="onnx")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lg.UserError, match="unknown format 'tflite'; choose onnx, int8, torch"):
        lg.export(tmp_path, format="tflite")


def test_decisions_may_differ_only_where_two_logits_are_close() -> None:
    expected = np.array([[0.0, 1.0], [0.5, 0.5 + 1e-4], [3.0, 0.0]])
    close = expected + np.array([[0, 0], [1e-4, -1e-4], [0, 0]])
    found = compare([(close, expected, np.array([1, 1, 1]))], tolerance=2e-4)
    assert (found.first, found.undecided, round(found.agreement, 1)) == (None, 1, 66.7)
    assert (round(found.top1 or 0, 1), round(found.timm_top1 or 0, 1)) == (33.3, 66.7)
    assert compare([(expected, expected, None), (expected + 1, expected, None)]).first == 3
    assert compare([(np.full((1, 2), np.nan), expected[:1], None)]).first == 0


def test_features_agree_by_their_direction_and_decide_nothing() -> None:
    features = np.array([[1.0, 0.0], [3.0, 4.0]], np.float32)
    found = compare([(features[:, ::-1], features, None)], classifies=False)
    assert (found.agreement, found.undecided, found.first) == (pytest.approx(48), 0, 0)
    near = compare([(features + np.float32(5e-5), features, None)], classifies=False)
    assert near.first is None and near.agreement == pytest.approx(100)


def test_a_library_that_warns_while_it_exports_leaves_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with onnx_file._quiet():
        logging.warning("please preprocess")
    assert logging.root.handlers == []


VIT = {"embed_dim": 48, "depth": 1, "num_heads": 3, "patch_size": 8}


@pytest.mark.export
@pytest.mark.parametrize(
    ("size", "classes", "labels"),
    [
        ((1, 32, 32), 4, []),
        ((3, 32, 48), 4, []),
        ((3, 32, 32), 0, []),
        ((3, 32, 32), 4, ["Größe", "模型", "🦊", "a b\n"]),
    ],
    ids=["one channel", "not square", "features", "names"],
)
def test_a_users_own_model_of_timm(size: tuple[int, int, int], classes: int, labels: list[str], tmp_path: Path) -> None:
    channels, height, width = size
    arguments = {**VIT, "img_size": (height, width)}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, in_chans=channels, **arguments)
    data = {"input_size": size, "mean": (0.5,) * channels, "std": (0.25,) * channels, "crop_pct": 1.0}
    named = {"label_names": labels} if labels else {}
    save_for_hf(
        model,
        str(tmp_path / "own"),
        model_config=named,
        model_args=arguments,
        safe_serialization=True,
        data_config=data,
    )
    made = lg.export(tmp_path / "own", format=["onnx", "int8"], uint8_input=True, out=tmp_path / "out")
    for one in made:
        session = onnxruntime.InferenceSession(one.path / "model.onnx")
        facts = json.loads(session.get_modelmeta().custom_metadata_map["learngene"])
        assert facts["labels"] == labels and facts["input"]["size"] == list(size)
        golden = np.load(one.path / "golden.npz")
        assert golden["inputs"].shape[1:] == (height, width, channels)
        np.testing.assert_allclose(session.run(None, {"images": golden["inputs"]})[0], golden["logits"], atol=1e-5)
        assert one.facts["classifies"] == bool(classes) and one.facts["compared"]["agreement"] > 50


@pytest.mark.export
@pytest.mark.parametrize(
    "architecture",
    [
        ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}),
        ("vit_small_patch14_reg4_dinov2", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 28}),
        ("eva02_tiny_patch14_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 28}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "img_size": 56}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
        ("mobilenetv3_small_050", {}),
    ],
    ids=lambda one: one[0],
)
def test_other_architectures_of_timm(architecture: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    name, arguments = architecture
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    size = PREPROCESSING.model_copy(update={"image_size": ImageShape.of(arguments.get("img_size", 64))})
    export_timm(model, tmp_path / "model", labels=DIGITS, preprocessing=size, model_args=arguments)
    made = lg.export(tmp_path / "model", format=["onnx", "int8", "torch"], out=tmp_path / "out")
    assert [one.facts["compared"]["agreement"] for one in made if one.facts["precision"] == "fp32"] == [100.0, 100.0]


@pytest.mark.export
@pytest.mark.parametrize("settings", [{}, {"int8": "static", "calibration_images": 32}], ids=["dynamic", "static"])
def test_uint8_input_normalises_in_the_graph(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", depth=2)
    formats = ["onnx", "int8"]
    images = {"data": "digits", "val_share": 0.3, "min_agreement": 50}
    made = lg.export(folder, format=formats, uint8_input=True, out=tmp_path / "out", **images, **settings)
    plain = lg.export(folder, format="onnx", out=tmp_path / "plain", **images)
    assert made[0].facts["compared"]["top1"] == plain[0].facts["compared"]["top1"]
    assert np.load(made[0].path / "golden.npz")["inputs"].dtype == np.uint8
    if settings:
        assert made[1].facts["quantization"] == {"kind": "static", "calibration_images": 32}


@pytest.mark.export
def test_int8_that_decides_otherwise_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    images = {"data": "digits", "val_share": 0.2}
    with pytest.raises(lg.UserError, match=r"less than --min-agreement 100: .*; nothing was written"):
        spec = SPEC.replace(depth=6)
        torch.manual_seed(1)
        model = create_method("scratch").expand(None, spec)
        with torch.no_grad():  # decisions are close
            model.head.weight.copy_(model.head.weight[:1] + 1e-4 * torch.randn(10, spec.width))
        export_timm(model, folder, labels=DIGITS, preprocessing=PREPROCESSING, model_args=timm_arguments(spec))
        lg.export(folder, format=["onnx", "int8"], min_agreement=100, out=tmp_path / "out", **images)
    assert not list((tmp_path / "out").iterdir()), "the format before it stays"
    with pytest.raises(lg.UserError, match="int8 static is calibrated on training images: give data"):
        lg.export(folder, format="int8", int8="static", out=tmp_path / "out")
    with pytest.raises(lg.UserError, match="a torch export holds a pickle, and a store keeps none: pull the model"):
        lg.sweep("gene", data="digits", export=["onnx", "torch"])


@register_model
def needs_its_values(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Return a model that cannot be traced: what it does depends on what it sees."""

    class Model(nn.Module):
        num_classes, num_features = 10, 192
        pretrained_cfg = {"architecture": "needs_its_values", "input_size": (3, 8, 8)}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 10)

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.head(images.flatten(1))
            return result if float(images.sum()) > 0 else -result

    return Model()


@pytest.mark.export
def test_an_architecture_that_does_not_export_is_one_line(tmp_path: Path) -> None:
    export_timm(needs_its_values(), tmp_path / "model", labels=DIGITS, preprocessing=PREPROCESSING)
    with pytest.raises(lg.UserError, match=r"^model \(needs_its_values\) does not export to torch.export: ") as error:
        lg.export(tmp_path / "model", out=tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.export
def test_a_sweep_publishes_exports_and_pull_fetches_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = publish_learngene(tmp_path, "sws:stages=1-1", spec=SPEC.replace(depth=2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEARNGENE_STORE", store.uri)
    settings = "--data digits --val-share 0.2 --train-share 0.2 --arms sws --epochs 1 --batch-size 64 --in-process"
    assert learngene(f"sweep --learngene gene --name s --depths 1 --export onnx,int8 --min-agreement 0 {settings}") == 0
    row = store.rows("s")[0]
    assert row["exports"] == "onnx,int8"
    assert learngene("pull --format int8 --out device") == 0
    facts = json.loads((tmp_path / "device" / "export.json").read_text())
    assert facts["precision"] == "int8" and facts["compared"]["timm_top1"] == pytest.approx(row["top1"], abs=1e-4)
    assert sorted(path.name for path in (tmp_path / "device").iterdir()) == [
        *("README.md", "export.json", "golden.npz", "model.onnx")
    ]
    assert learngene("sweep --learngene gene --name t --depths 2 " + settings) == 0
    plain = store.rows("t")[0]["descendant"]
    capsys.readouterr()
    assert learngene(f"pull descendants/t/{plain} --format onnx") == 2
    assert re.search("was published without onnx: pull it .* `learngene export", capsys.readouterr().err)
    assert provenance()["versions"]["torch"]


@pytest.mark.export
@pytest.mark.parametrize(("where", "reruns"), [("--in-process", ["onnx", "onnx,int8"]), ("", ["onnx,int8"])])
def test_a_sweep_that_runs_again_adds_the_exports_that_are_missing(
    where: str, reruns: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = publish_learngene(tmp_path, "sws:stages=1-1", spec=SPEC.replace(depth=2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEARNGENE_STORE", store.uri)
    settings = "--data digits --val-share 0.2 --train-share 0.2 --arms sws --epochs 1 --batch-size 64"
    command = f"sweep --learngene gene --name s --depths 1,2 --min-agreement 0 {settings}"
    assert learngene(f"{command} --in-process") == 0
    plain = {row["descendant"]: row for row in store.rows("s")}
    tensors = {one.name: one.entry("model.safetensors") for one in store.manifests("descendant", "s")}
    assert len(plain) == 2 and not any(row["exports"] for row in plain.values())
    for formats in reruns:
        assert learngene(f"{command} {where} --export {formats}") == 0
        said = capsys.readouterr().out
        assert "0 descendants to train" in said and "2 published descendants lack" in said
        assert {row["exports"] for row in store.rows("s")} == {formats}
    assert learngene(f"{command} --in-process --export onnx,int8") == 0  # none is missing
    assert "lack" not in capsys.readouterr().out
    again = store.manifests("descendant", "s")
    assert {one.name: one.entry("model.safetensors") for one in again} == tensors
    assert {row["descendant"]: {**row, "exports": None} for row in store.rows("s")} == plain
    assert learngene("pull --out best") == 0
    assert "exports: onnx, int8 (--format fetches one)" in capsys.readouterr().out
    timm_files = ["README.md", "config.json", "metrics.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == timm_files
    card = (tmp_path / "best" / "README.md").read_text()
    assert "Exports: onnx, int8. `learngene pull descendants/s/" in card and "```\n\n| | |\n" in card
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["row"]["exports"] == "onnx,int8"
    store.download("descendant", again[0].name, tmp_path / "whole")
    assert (tmp_path / "whole" / "int8" / "model.onnx").is_file()
    assert learngene("pull --out whole --overwrite") == 0  # replaces what an earlier version pulled
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == timm_files


@pytest.mark.parametrize(
    "license, said", [("cc-by-nc-4.0", "License: cc-by-nc-4.0. It restricts"), (None, "none is stated")]
)
def test_an_export_has_the_licence_of_its_model(license: str | None, said: str, tmp_path: Path) -> None:
    model = create_method("scratch").expand(None, SPEC)
    origin, arguments = Origin(license=license), timm_arguments(SPEC)
    folder = tmp_path / "model"
    export_timm(model, folder, labels=DIGITS, preprocessing=PREPROCESSING, model_args=arguments, origin=origin)
    (made,) = lg.export(folder, out=tmp_path / "onnx")
    card = ModelCard.load(made.path / "README.md")
    assert card.data.license == license and card.data.library_name == "onnx"
    assert said in card.text and made.facts["license"] == license


def test_logits_of_one_class_are_compared() -> None:
    one = np.array([[0.5], [2.0]], np.float32)
    assert compare([(one, one, np.zeros(2, int))]).agreement == 100


@pytest.mark.parametrize(("model", "out"), [(".", "a/b-torch"), ("..", "a-torch"), ("../b/", "a/b-torch")])
def test_an_export_lies_next_to_its_model(
    model: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert Path(ExportConfig(model=model, format=("torch",)).outs["torch"]).resolve() == tmp_path / out


def test_a_set_of_which_nothing_can_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, split in itertools.product(DIGITS, ("train", "val")):
        (tmp_path / "set" / split / name).mkdir(parents=True)
        (tmp_path / "set" / split / name / "x.png").write_bytes(b"no image")
    folder = model_folder(tmp_path / "model")
    assert learngene(f"evaluate {folder} --data {tmp_path / 'set'} --unreadable skip") == 2
    error = capsys.readouterr().err
    assert "none of the 10 images can be read" in error and error.count("\n") == 1


def test_weights_that_an_onnx_file_does_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1e5)
    example = torch.zeros(2, 200)
    program = onnx_file.export_program(nn.Linear(200, 200), example, "wide")
    with pytest.raises(lg.UserError, match="wide has 0.0 GB of weights, and an ONNX file holds .*: export to torch"):
        onnx_file.to_onnx(program, example, "wide")
