"""What the device makes of uint8 batches is, bit for bit, what timm's transforms of one image at a time give."""

import itertools
import pickle
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import Mixup, create_transform
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.utils.data import DataLoader

from ray_learngene.config import AugmentationConfig, DataConfig, OptimizationConfig
from ray_learngene.data.batch import Batch
from ray_learngene.data.image_set import ArraySet, ImageSet, Subset
from ray_learngene.data.loader import eval_loader, train_loader
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.data.sampler import WorkerBatches
from ray_learngene.models.preprocessing import Preprocessing
from tests.data.image_files import photo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATIONS = {
    "plain": AugmentationConfig(),
    "erased": AugmentationConfig(reprob=0.6, color_jitter=0.4),
    "randaugment": AugmentationConfig(auto_augment="rand-m9-mstd0.5-inc1", reprob=0.25),
    "augmix": AugmentationConfig(auto_augment="augmix-m5-w3"),
    "mixup": AugmentationConfig(mixup=0.8, mixup_prob=0.7),
    "cutmix": AugmentationConfig(cutmix=1.0),
    "all": AugmentationConfig(auto_augment="rand-m9-mstd0.5-inc1", reprob=0.4, mixup=0.8, cutmix=1.0, repeats=2),
}


def photo_set(count: int) -> ImageSet:
    """Colour images of 48 x 40 pixels in five classes."""
    pixels = np.stack([np.asarray(photo(number, (48, 40))) for number in range(count)])
    return ArraySet("photos", pixels, np.arange(count) % 5, tuple("abcde"))


def one_by_one(
    images: ImageSet, size: int, augmentation: AugmentationConfig, soft: bool
) -> list[tuple[Tensor, Tensor]]:
    """Two epochs of batches of 12: float32 images by timm alone, then timm's mixing of pair after pair."""
    transform = create_transform(
        size,
        is_training=True,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=augmentation.auto_augment,
        re_prob=augmentation.reprob,
        re_mode="pixel",
        interpolation=augmentation.interpolation,
        mean=MEAN,
        std=STD,
    )
    classes = len(images.classes)
    mixup = Mixup(
        mixup_alpha=augmentation.mixup,
        cutmix_alpha=augmentation.cutmix,
        prob=augmentation.mixup_prob,
        switch_prob=augmentation.mixup_switch_prob,
        label_smoothing=augmentation.smoothing,
        num_classes=classes,
    )

    def seed(*key: int) -> None:
        words = np.random.SeedSequence(key).generate_state(4)
        random.seed(words.tobytes())
        np.random.seed(words)
        torch.manual_seed(int(words[0]))

    batches = []
    for samples in WorkerBatches(len(images), 12, seed=3, epochs=2, repeats=augmentation.repeats):
        views = []
        for sample in samples:
            image = images.image(sample.index)
            seed(3, *sample)
            views.append(transform(image))
        pixels = torch.stack(views)
        labels = torch.tensor([int(images.labels[sample.index]) for sample in samples])
        if augmentation.mixup or augmentation.cutmix:
            targets = []
            for first in range(0, 12, 2):
                seed(3, *samples[first], 1)
                pair = slice(first, first + 2)
                pixels[pair], target = mixup(pixels[pair], labels[pair])
                targets.append(target)
            batches.append((pixels, torch.cat(targets)))
        else:
            batches.append((pixels, mixup_target(labels, classes, smoothing=0.1) if soft else labels))
    return batches


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_those_of_timm_bit_for_bit(name: str) -> None:
    images, augmentation = photo_set(30), AUGMENTATIONS[name]
    soft = name == "erased"
    expected = one_by_one(images, 24, augmentation, soft)
    options: dict[str, Any] = {"seed": 3, "batch_size": 12, "epochs": 2, "soft_targets": soft}
    for workers, early in itertools.product((0, 2) if name == "all" else (0,), (False, True)):
        loader = train_loader(images, 24, MEAN, STD, augmentation, workers=workers, finish_in_loader=early, **options)
        found = list(loader)
        assert len(found) == len(expected) == 4
        for (pixels, targets), (wanted_pixels, wanted_targets) in zip(found, expected, strict=True):
            assert pixels.dtype == torch.float32 and pixels.is_contiguous()
            assert torch.equal(pixels, wanted_pixels)
            assert targets.dtype == wanted_targets.dtype and torch.equal(targets, wanted_targets)


def test_evaluation_is_timms_bit_for_bit() -> None:
    images = photo_set(20)
    transform = create_transform(24, mean=MEAN, std=STD, interpolation="bicubic", crop_pct=0.875)
    expected = torch.stack([transform(images.image(index)) for index in range(len(images))])
    preprocessing = Preprocessing(image_size=24, mean=MEAN, std=STD, crop_pct=0.875, interpolation="bicubic")
    found = torch.cat([pixels for pixels, _ in eval_loader(images, preprocessing, 7)])
    assert torch.equal(found, expected)


def sent_and_given(loader: DataLoader[Batch]) -> tuple[Any, Batch]:
    """Return the first batch as a loader process sends it, and as training is given it."""
    samples = next(iter(loader.batch_sampler))  # type: ignore[arg-type]
    return loader.collate_fn(loader.dataset.__getitems__(samples)), next(iter(loader))  # type: ignore[attr-defined]


def test_loader_processes_send_bytes_or_finish_batches_themselves() -> None:
    digits = open_image_sets(DataConfig(data="digits"))
    preprocessing = Preprocessing(image_size=32, mean=MEAN, std=STD, crop_pct=1.0, interpolation="bicubic")
    augmentation = AugmentationConfig(mixup=0.8, reprob=0.25)
    images = ImagePipeline(Subset(digits.train, np.arange(64)), digits.val, preprocessing, augmentation)
    config = OptimizationConfig(batch_size=64, epochs=1, warmup_epochs=0)
    sent, given = sent_and_given(images.training_batches(config))
    finished, same = sent_and_given(replace(images, finish_batches="loader").training_batches(config))
    assert torch.equal(finished[0], given[0]) and torch.equal(same[0], given[0])
    assert sent.pixels.dtype == torch.uint8 and sent.pixels.shape == (64, 32, 32, 3)
    assert len(pickle.dumps(sent)) < given[0].nbytes / 3
