"""What a method cannot do is refused before models and images are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from ray_learngene.config import AncestryConfig, DistillConfig, ExtractConfig, SweepConfig
from ray_learngene.distillation import distill, extract, train_ancestry
from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.store import Store
from ray_learngene.sweeps import prepare


def unread(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("a model or images were read")


@pytest.mark.parametrize(
    ("student", "changes", "says"),
    [
        ("levit_128s", {}, "any-size cannot train levit_128s: it has running statistics"),
        ("caformer_s18", {}, "caformer_s18 .* timm refuses this size: .* got multiple values"),
        ("convnext_atto", {"method": "early-exit"}, "early-exit needs a plain vision transformer, Eva or BEiT"),
        ("convnext_atto", {"method": "wave:template=8"}, "convnext_atto has stages of several widths"),
        ("deit_tiny_patch16_224", {"method": "mimetic"}, "'mimetic' has no auxiliary model to distil"),
        ("deit_tiny_patch16_224", {"method": "sws:stages=2-2", "depth": 5}, r"--depth 5 and .* \(4 layers\) disagree"),
        ("deit_tiny_patch16_224", {"layer_decay": 0.5}, "the layers of this ElasticVisionTransformer share parameters"),
    ],
)
def test_what_a_method_cannot_train(
    student: str, changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "load_ancestry", unread)
    config = DistillConfig(
        **{"name": "no", "data": "digits", "ancestry": "resnet10t", "store": str(tmp_path), "student": student},
        **changes,
    )
    with pytest.raises(UserError, match=says):
        distill.prepare(config)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("mobilenetv3_small_050.lamb_in1k", "timm takes no depth for it"),
        ("regnetx_002", "no list of blocks of regnetx_002 follows the depth"),
    ],
)
def test_what_a_method_cannot_take(source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "_source", unread)
    config = ExtractConfig(name="no", source=source, method="heur-lg", store=str(tmp_path))
    with pytest.raises(UserError, match=says):
        extract.extract(config)


@pytest.mark.parametrize(
    ("model", "changes", "says"),
    [
        ("deit_tiny_patch16_224", {"model_args": {"embed_dim": 31}}, "--model deit_tiny_patch16_224: dim should be"),
        ("deit_tiny_patch16_224", {"model_args": {"dpth": 3}}, "unexpected keyword argument 'dpth'; see --model-args"),
        ("deit_tiny_patch16_224", {"image_size": 33}, "image size 33 is not divisible by patch size 16"),
        ("swin_tiny_patch4_window7_224", {"image_size": 31}, "choose 28 or 32"),
    ],
)
def test_what_timm_does_not_build(
    model: str, changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_ancestry, "checked_image_sets", unread)
    config = AncestryConfig(name="no", data="digits", model=model, store=str(tmp_path), **changes)
    with pytest.raises(UserError, match=says):
        train_ancestry.train_ancestry(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ("heur-lg",), "depths": "2"}, "'one' was made by 'sws', not by 'heur-lg'"),
        ({"stage_depths": "1-2/1-2", "budgets": ("params<=1M",)}, "2 stages, but the model has 1"),
    ],
)
def test_sizes_of_a_sweep(changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "checked_image_sets", unread)
    method, store = create_method("sws:stages=1-1"), Store(str(tmp_path / "store"))
    learngene = method.extract(method.auxiliary(PRESETS["nano"]))
    learngene.save(tmp_path / "made")
    store.publish("learngene", "one", tmp_path / "made", {**learngene.description(), "fingerprint": "x"})
    config = SweepConfig(name="no", data="digits", learngene="one", store=store.uri, in_process=True, **changes)
    with pytest.raises(UserError, match=says):
        prepare.prepare(config, store)
