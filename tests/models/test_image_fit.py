"""Sizes of images that an architecture does not take are refused, with the nearest ones that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_learngene.errors import UserError
from ray_learngene.models.image_fit import require_fit
from ray_learngene.models.sizes import sizes_of
from ray_learngene.models.specs import spec_for
from tests.command_line import learngene
from tests.models.sizes import SMALL


@pytest.mark.parametrize(
    ("architecture", "image", "line"),
    [
        ("deit_tiny_patch16_224", "20x16", "image size 20x16 is not divisible by patch size 8: choose 16x16 or 24x16"),
        ("vit_small_patch16_dinov3", 4, "image size 4 is not divisible by patch size 8: choose 8"),
        ("swin_tiny_patch4_window7_224", 90, "image size 90 is not divisible by patch size 4: choose 88 or 92"),
        ("xcit_nano_12_p16_224", 20, "xcit_nano_12_p16_224 does not take images of 20 px: choose 16 or 24"),
        ("convnext_atto", 8, "it does not run on images of 8 px: choose 32"),
    ],
)
def test_the_nearest_sizes_that_fit(architecture: str, image: Any, line: str) -> None:
    spec = spec_for(architecture, classes=3, **SMALL[architecture])
    with pytest.raises(UserError, match=line):
        require_fit(spec.replace(image=image))
    with pytest.raises(UserError, match=line):
        sizes_of(spec, depths=str(spec.depth), changes={"image": image})


def test_an_architecture_keeps_its_own_images() -> None:
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    require_fit(spec_for("vit_so400m_patch14_siglip_384", classes=3, **small))
    with pytest.raises(UserError, match="image size 384 is not divisible by patch size 15: choose 375 or 390"):
        require_fit(spec_for("vit_so400m_patch14_siglip_384", classes=3, patch_size=15, **small))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("levit_128s --image-size 100", "levit_128s: it does not run on images of 100 px: choose 96 or 112"),
        ("xcit_nano_12_p16_224 --image-size 20", "timm does not take images of 20 px: choose 16 or 32"),
        ("deit_tiny_patch16_224 --model-args '{depth: 1, img_size: 20}'", "not divisible by patch size 16: choose 16"),
        ("deit_tiny_patch16_224 --model-args '{depth: 1, num_heads: -3}'", "invalid shape dimension -3"),
        ("convnext_atto --model-args '{img_size: 32}'", "got an unexpected keyword argument 'img_size'"),
    ],
)
def test_an_ancestry_model_is_refused_before_training(
    model: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--data digits --train-share 0.1 --epochs 1 --workers 0 --name teacher"
    assert learngene(f"ancestry {flags} --store {tmp_path / 'store'} --model {model}") == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
