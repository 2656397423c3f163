"""Unreadable images: an error that names them, or others in their place, the same for all workers, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ray_learngene.cli.main import main
from ray_learngene.config import AugmentationConfig, DataConfig, OptimizationConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.data.reader import Policy
from ray_learngene.errors import UserError
from ray_learngene.models.build import build, timm_arguments
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.models.timm_folder import export_timm
from tests.data.image_files import write_class_folders

PREPROCESSING = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")
DAMAGED = ("train/a/0.jpg", "train/b/3.jpg", "val/a/1.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        write_class_folders(root / split, {"a": 4, "b": 4})
    for name in DAMAGED:
        (root / name).write_bytes((root / name).read_bytes()[:-200])
    return root


def images_of(folder: Path, policy: Policy, loader_workers: int = 0) -> ImagePipeline:
    sets = open_image_sets(DataConfig(data=str(folder)))
    augmentation = AugmentationConfig(reprob=0.5)
    return ImagePipeline(sets.train, sets.val, PREPROCESSING, augmentation, loader_workers, policy)


SETTINGS = OptimizationConfig(seed=1, batch_size=4, epochs=2, warmup_epochs=0)


def batches(images: list[ImagePipeline]) -> list[tuple[Tensor, Tensor]]:
    """Return the global batches of as many workers as there are image sets."""
    workers = [
        list(one.training_batches(SETTINGS, rank=rank, world_size=len(images))) for rank, one in enumerate(images)
    ]
    return [tuple(torch.cat(parts) for parts in zip(*shares, strict=True)) for shares in zip(*workers, strict=True)]  # type: ignore[misc]


@pytest.mark.parametrize(("workers", "loader_workers"), [(1, 2), (2, 0)])
def test_skipped_images_are_replaced_alike_and_counted(folder: Path, workers: int, loader_workers: int) -> None:
    alone = [images_of(folder, "skip")]
    expected = batches(alone)
    assert [len(targets) for _, targets in expected] == [4, 4, 4, 4]
    names = [name.partition("/")[2] for name in DAMAGED]  # below their split: no path of this machine
    assert alone[0].readers[0].names() == names[:2]
    together = [images_of(folder, "skip", loader_workers) for _ in range(workers)]
    for one, other in zip(batches(together), expected, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert sorted({name for one in together for name in one.readers[0].names()}) == names[:2]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_leaves_them_out(folder: Path, batch_size: int) -> None:
    images = images_of(folder, "skip")
    assert sum(len(targets) for _, targets in images.scored_batches(batch_size)[0]) == 7
    assert images.readers[1].names() == [DAMAGED[2].partition("/")[2]]


def test_by_default_the_first_one_is_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot read image .*/train/.*jpg: .*, or go on without it: --unreadable skip"):
        batches([images_of(folder, "fail")])


def test_a_set_without_a_readable_image(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"a": 2, "b": 2})
    write_class_folders(tmp_path / "val", {"a": 1})
    for path in (tmp_path / "train").glob("*/*.jpg"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the 4 images can be read"):
        batches([images_of(tmp_path, "skip")])


def test_an_evaluation_skips_them_if_asked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = PRESETS["nano"].replace(depth=1, classes=2)
    model = build(spec, seed=0)
    export_timm(model, tmp_path, labels=("a", "b"), preprocessing=PREPROCESSING, model_args=timm_arguments(spec))
    words = ["evaluate", str(tmp_path), "--data", str(folder)]
    assert main(words) == 2 and "or go on without it: --unreadable skip" in capsys.readouterr().err
    assert main([*words, "--unreadable", "skip"]) == 0
    said = capsys.readouterr()
    assert "skipped 1 unreadable image" in said.out + said.err and "% on 7 images" in said.out
