"""A descendant's folder is timm's own: equal logits through plain timm, preprocessing and labels included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf

from ray_learngene.ancestry.model import create_timm
from ray_learngene.config import EvaluateConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.delivery.evaluate import evaluate_model
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import timm_arguments
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.models.timm_folder import export_timm, load_timm
from tests.data.image_files import write_class_folders

NANO = PRESETS["nano"]
PREPROCESSING = Preprocessing(
    image_size=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.95, interpolation="bilinear"
)
LABELS = tuple("abcdefghij")


@pytest.mark.parametrize("name", ["sws", "scratch"])  # every other one in methods/test_every_method.py
def test_a_method_through_learngene_expansion_and_timm(name: str, tmp_path: Path) -> None:
    method = create_method(name)
    learngene = None
    if method.needs_learngene:
        extracted = method.extract(method.auxiliary(NANO)).describe(
            labels=LABELS, preprocessing=PREPROCESSING.model_dump(mode="json")
        )
        extracted.save(tmp_path / "learngene")
        learngene = Learngene.load(tmp_path / "learngene")
        assert learngene.description() == json.loads(json.dumps(extracted.description()))
        assert all(torch.equal(tensor, learngene.tensors[key]) for key, tensor in extracted.tensors.items())
    spec = NANO.replace(depth=7)
    model = method.expand(learngene, spec, seed=5).eval()
    export_timm(model, tmp_path / "model", labels=LABELS, preprocessing=PREPROCESSING, model_args=timm_arguments(spec))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(model(images), loaded(images))
    data = resolve_model_data_config(loaded)
    assert tuple(data["input_size"]) == (3, 8, 8)
    assert (tuple(data["mean"]), tuple(data["std"])) == (PREPROCESSING.mean, PREPROCESSING.std)
    assert (data["crop_pct"], data["interpolation"], data["crop_mode"]) == (0.95, "bilinear", "center")
    assert tuple(loaded.pretrained_cfg["label_names"]) == LABELS


def test_a_folder_gives_features_as_any_timm_model_does(tmp_path: Path) -> None:
    model = create_method("scratch").expand(None, NANO.replace(depth=3)).eval()
    arguments = timm_arguments(NANO.replace(depth=3))
    export_timm(model, tmp_path / "model", labels=LABELS, preprocessing=PREPROCESSING, model_args=arguments)
    folder, images = f"local-dir:{tmp_path / 'model'}", torch.randn(2, 3, 8, 8)
    loaded = timm.create_model(folder, pretrained=True).eval()
    last, maps = loaded.forward_intermediates(images, norm=True)
    assert torch.equal(loaded.forward_head(last), model(images)) and len(maps) == 3
    assert torch.equal(maps[-1], last.transpose(1, 2).unflatten(2, (4, 4)))
    backbone = timm.create_model(folder, pretrained=True, features_only=True, out_indices=(0, 2)).eval()
    assert backbone.feature_info.channels() == [48, 48]
    features, expected = backbone(images), loaded.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(features, expected, strict=True))


@pytest.mark.parametrize("name", ["sws", "scratch"])
def test_the_same_seed_expands_to_the_same_model(name: str) -> None:
    method = create_method(name)
    learngene = method.extract(method.auxiliary(NANO)) if method.needs_learngene else None
    spec = NANO.replace(classes=4)
    before = torch.get_rng_state()
    one, two = method.expand(learngene, spec, seed=1), method.expand(learngene, spec, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_folder_needs_no_code_of_ours(tmp_path: Path) -> None:
    model = create_method("scratch").expand(None, NANO).eval()
    export_timm(model, tmp_path / "model", labels=LABELS, preprocessing=PREPROCESSING, model_args=timm_arguments(NANO))
    images = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    program = (
        # torchvision's CUDA build next to a CPU-only torch cannot be imported without its operators' schemas
        "import torch; library = torch.library.Library('torchvision', 'DEF')\n"
        "for name in ('nms', 'qnms'):\n"
        "    try: library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "    except RuntimeError: pass\n"
        "import sys, timm\n"
        f"model = timm.create_model('local-dir:{tmp_path / 'model'}', pretrained=True).eval()\n"
        "print(model(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)).tolist())\n"
        "assert not any(name.startswith('ray') for name in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (
        json.loads(ran.stdout) == pytest.approx(model(images).tolist()[0])
        or json.loads(ran.stdout) == model(images).tolist()
    )


def test_an_ancestry_model_starts_from_a_folder_with_a_fresh_head_where_classes_differ(tmp_path: Path) -> None:
    model = create_method("scratch").expand(None, NANO.replace(depth=2))
    export_timm(
        model, tmp_path, labels=LABELS, preprocessing=PREPROCESSING, model_args=timm_arguments(NANO.replace(depth=2))
    )
    for classes in (10, 7):
        started = create_timm(f"local-dir:{tmp_path}", "--model", pretrained=True, num_classes=classes)
        weights = started.state_dict()
        fresh = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])]
        assert fresh == ([] if classes == 10 else ["head.weight", "head.bias"])
        assert weights["head.weight"].shape[0] == classes


def test_a_folder_says_how_its_model_was_measured_and_is_measured_as_it_says(tmp_path: Path) -> None:
    """Some of timm's models squash images instead of cropping them; training from one crops."""
    write_class_folders(tmp_path / "images" / "train", {"a": 2, "b": 2})
    write_class_folders(tmp_path / "images" / "val", {"a": 3, "b": 3})  # 24 by 16 pixels
    spec = NANO.replace(classes=2)
    model = create_method("scratch").expand(None, spec)
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_mode": "squash"}
    export_timm(model, tmp_path / "m", labels=("a", "b"), preprocessing=PREPROCESSING, model_args=timm_arguments(spec))
    data = resolve_model_data_config(load_timm(tmp_path / "m"))
    assert data["crop_mode"] == "center"
    config = EvaluateConfig(model=str(tmp_path / "m"), data=str(tmp_path / "images"))
    losses = [evaluate_model(config).mean_loss]
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    settings["pretrained_cfg"]["crop_mode"] = "squash"
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    losses.append(evaluate_model(config).mean_loss)
    for mode, loss in zip(("center", "squash"), losses, strict=True):
        transform = create_transform(**{**data, "crop_mode": mode})
        sets = open_image_sets(config)
        images = torch.stack([transform(sets.val.image(index)) for index in range(6)])
        with torch.no_grad():
            expected = F.cross_entropy(model.eval()(images), torch.tensor(sets.val.labels))
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert losses[0] != losses[1]


def test_what_is_no_timm_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_timm(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_timm(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="does not load as a timm model"):
        load_timm(tmp_path)


def test_a_model_without_one_logit_for_each_class_is_refused(tmp_path: Path) -> None:
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1, "class_token": False}
    size |= {"global_pool": ""}  # a vector for each patch
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **size)
    save_for_hf(model, str(tmp_path), model_args=size, safe_serialization=True)
    with pytest.raises(UserError, match="does not give one logit for each of its 3 classes") as error:
        load_timm(tmp_path)
    assert "\n" not in str(error.value)
