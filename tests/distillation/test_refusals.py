"""What a method cannot do is refused before models and images are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from ray_learngene.config import DistillConfig, ExtractConfig
from ray_learngene.distillation import distill, extract
from ray_learngene.errors import UserError


def unread(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("a model was read")


@pytest.mark.parametrize(
    ("student", "changes", "says"),
    [
        ("levit_128s", {}, "any-size cannot train levit_128s: it has running statistics"),
        ("caformer_s18", {}, "caformer_s18 .* timm refuses this size: .* got multiple values"),
        ("convnext_atto", {"method": "early-exit"}, "early-exit needs a plain vision transformer, Eva or BEiT"),
        ("convnext_atto", {"method": "wave:template=8"}, "convnext_atto has stages of several widths"),
        ("deit_tiny_patch16_224", {"method": "mimetic"}, "'mimetic' has no auxiliary model to distil"),
        ("deit_tiny_patch16_224", {"method": "sws:stages=2-2", "depth": 5}, r"--depth 5 and .* \(4 layers\) disagree"),
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
