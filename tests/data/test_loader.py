"""Pixels, targets and mixing are functions of seed, epoch, index and view alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_transform
from torch import Tensor

from ray_learngene.config import AugmentationConfig, DataConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.image_set import ArraySet, ImageSets, Subset
from ray_learngene.data.loader import eval_loader, train_loader
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError
from ray_learngene.models.preprocessing import Preprocessing
from tests.data.image_files import write_class_folders

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
WHOLE = Preprocessing(image_size=8, mean=MEAN, std=STD, crop_pct=1.0, interpolation="bicubic")
STRONG = AugmentationConfig(color_jitter=0.3, reprob=0.5, repeats=2)
RANDAUGMENT = AugmentationConfig(auto_augment="rand-m9-mstd0.5-inc1", reprob=0.25)
MIXED = AugmentationConfig(mixup=0.8, cutmix=1.0, mixup_prob=0.8, reprob=0.25)


@pytest.fixture(scope="module")
def digits() -> ImageSets:
    sets = open_image_sets(DataConfig(data="digits"))
    return ImageSets(Subset(sets.train, np.arange(70)), Subset(sets.val, np.arange(50)))


def steps(
    digits: ImageSets, augmentation: AugmentationConfig, world_size: int = 1, accumulation: int = 1, **options: Any
) -> list[tuple[Tensor, Tensor]]:
    """Images and targets of every global batch, put together from all workers."""
    settings = {"seed": 1, "batch_size": 16, "world_size": world_size, "accumulation": accumulation, "epochs": 2}
    loaders = [
        list(train_loader(digits.train, 8, MEAN, STD, augmentation, rank=rank, **settings, **options))
        for rank in range(world_size)
    ]
    return [
        (
            torch.cat([images for worker in loaders for images, _ in worker[step : step + accumulation]]),
            torch.cat([targets for worker in loaders for _, targets in worker[step : step + accumulation]]),
        )
        for step in range(0, len(loaders[0]), accumulation)
    ]


def equal(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("augmentation", [STRONG, RANDAUGMENT, MIXED], ids=["erasing", "randaugment", "mixed"])
def test_images_and_targets_do_not_depend_on_the_workers(digits: ImageSets, augmentation: AugmentationConfig) -> None:
    alone = steps(digits, augmentation)
    assert len(alone) == 8
    for world_size, accumulation in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (3, 1)):
        assert equal(steps(digits, augmentation, world_size, accumulation), alone)


@pytest.mark.parametrize("augmentation", [STRONG, MIXED], ids=["erasing", "mixed"])
def test_nor_on_restarts_and_loader_processes(digits: ImageSets, augmentation: AugmentationConfig) -> None:
    alone = steps(digits, augmentation)
    assert equal(steps(digits, augmentation, start_step=6), alone[6:])
    assert equal(steps(digits, augmentation, workers=2), alone)
    assert equal(steps(digits, augmentation, 2, 2, start_step=3, workers=2), alone[3:])


def test_epochs_views_and_seeds_differ(digits: ImageSets) -> None:
    one = Subset(digits.train, np.zeros(4, dtype=np.int64))  # four times the same image
    loader = train_loader(one, 8, MEAN, STD, STRONG, seed=0, batch_size=4, epochs=2)
    views = torch.cat([images for images, _ in loader])
    assert len(torch.unique(views, dim=0)) == len(views) == 8


def test_global_generators_are_left_alone(digits: ImageSets) -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    steps(digits, MIXED)
    list(eval_loader(digits.val, WHOLE, 10))
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_targets(digits: ImageSets) -> None:
    images, targets = steps(digits, AugmentationConfig())[0]
    assert images.dtype == torch.float32 and images.shape == (16, 3, 8, 8)
    assert targets.dtype == torch.int64 and targets.shape == (16,)
    _, smoothed = steps(digits, AugmentationConfig(smoothing=0.1), soft_targets=True)[0]
    assert smoothed.dtype == torch.float32 and torch.equal(smoothed.argmax(1), targets)
    assert torch.allclose(smoothed.max(1).values, torch.tensor(0.91))
    _, mixed = steps(digits, MIXED)[0]
    assert mixed.shape == (16, 10) and torch.allclose(mixed.sum(1), torch.ones(16))
    pairs = mixed.reshape(8, 2, 10)
    assert torch.allclose(pairs.sum(1), smoothed.reshape(8, 2, 10).sum(1), atol=1e-6), "pairs share their two labels"


def test_mixup_mixes_the_two_images_of_a_pair() -> None:
    pixels = np.stack([np.full((4, 4), value, dtype=np.uint8) for value in (0, 255)])
    images = ArraySet("two", pixels, np.array([0, 1]), ("dark", "bright"))
    augmentation = AugmentationConfig(mixup=1.0, smoothing=0.0)
    loader = train_loader(images, 4, (0.0,) * 3, (1.0,) * 3, augmentation, seed=0, batch_size=2, epochs=5)
    for mixed, targets in loader:
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets[:, 1], atol=1e-5)


def test_odd_batches_cannot_be_mixed(digits: ImageSets) -> None:
    with pytest.raises(UserError, match="mix pairs, but --batch-size 9 is odd"):
        train_loader(digits.train, 8, MEAN, STD, MIXED, seed=0, batch_size=9, epochs=1)


def test_the_strongest_policy_runs(digits: ImageSets) -> None:
    strongest = AugmentationConfig(auto_augment="rand-m10-n6-inc1")
    assert all(torch.isfinite(images).all() for images, _ in steps(digits, strongest))


def test_unknown_policy(digits: ImageSets) -> None:
    with pytest.raises(UserError, match="'nonsense' is no policy of timm"):
        bad = AugmentationConfig(auto_augment="nonsense")
        train_loader(digits.train, 8, MEAN, STD, bad, seed=0, batch_size=10, epochs=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_and_as_it_is(digits: ImageSets, workers: int) -> None:
    shares = [list(eval_loader(digits.val, WHOLE, 7, workers=workers, rank=rank, world_size=3)) for rank in range(3)]
    counts = [sum(len(targets) for _, targets in share) for share in shares]
    assert counts == [17, 17, 16]
    images = torch.cat([images for images, _ in shares[1]])
    targets = torch.cat([targets for _, targets in shares[1]])
    assert targets.tolist() == digits.val.labels[1::3].tolist()
    pixels = np.asarray(digits.val.image(1)).transpose(2, 0, 1) / 255
    assert np.allclose(images[0].numpy(), (pixels - 0.5) / 0.25, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(tmp_path: Path, workers: int) -> None:
    root = write_class_folders(tmp_path / "set", {"a": 4, "b": 4})
    damaged = root / "a" / "0.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    images = open_image_sets(DataConfig(data=str(root))).train
    loader = train_loader(images, 8, MEAN, STD, STRONG, seed=0, batch_size=2, epochs=2, workers=workers)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"cannot read image {damaged}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_grey_images_that_are_not_square_are_those_of_timm(digits: ImageSets, workers: int) -> None:
    grey = Preprocessing(image_size="1x16x8", mean=(0.5,), std=(0.25,), crop_pct=0.9, interpolation="bicubic")
    images, _ = next(iter(eval_loader(digits.val, grey, 4, workers=workers)))
    settings = {"mean": (0.5,), "std": (0.25,), "crop_pct": 0.9, "interpolation": "bicubic"}
    transform = create_transform((1, 16, 8), **settings)
    expected = torch.stack([transform(digits.val.image(index).convert("L")) for index in range(4)])
    torch.testing.assert_close(images, expected)
    loader = train_loader(
        digits.train, ImageShape(1, 16, 8), (0.5,), (0.25,), MIXED, seed=0, batch_size=8, epochs=1, workers=workers
    )
    assert next(iter(loader))[0].shape == (8, 1, 16, 8)


def test_a_batch_for_evaluation_may_be_larger_than_any_set(digits: ImageSets) -> None:
    assert [len(labels) for _, labels in eval_loader(digits.val, WHOLE, 10**30)] == [50]
