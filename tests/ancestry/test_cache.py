"""When a kept answer is used, and when not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_learngene.ancestry.answers import Answers
from ray_learngene.ancestry.cache import facts_of, part_names
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import AugmentationConfig, OptimizationConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.image_set import Subset
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.errors import UserError
from ray_learngene.store.store import Store
from tests.ancestry.soft_label_runs import (
    CONFIG,
    EXACT,
    STEPS,
    STRONG,
    answers_of,
    some_images,
    unasked,
    vision_transformer,
)


def taught(
    answers: Callable[[], Answers],
    images: ImagePipeline,
    config: OptimizationConfig,
    world_size: int,
    start_step: int = 0,
) -> list[list[tuple[Tensor, ...]]]:
    return [
        [
            (batch, targets, labels.logits())
            for batch, targets, labels in answers().added_to(
                images.training_batches(config, rank=rank, world_size=world_size, start_step=start_step)
            )
        ]
        for rank in range(world_size)
    ]


def test_two_workers_write_what_any_number_reads(tmp_path: Path, images: ImagePipeline, ancestry: Ancestry) -> None:
    config = CONFIG.model_copy(update={"epochs": 2, "accumulation": 2})
    wrote = taught(lambda: answers_of(tmp_path, images, ancestry, config), images, config, world_size=2)
    for batches in wrote:
        for batch, _, logits in batches:
            with torch.no_grad():
                assert torch.equal(logits, ancestry(batch))

    def reading() -> Answers:
        return answers_of(tmp_path, images, unasked(ancestry), config)

    read = taught(reading, images, config, world_size=2)
    late = taught(reading, images, config, world_size=2, start_step=STEPS + 1)
    for rank in range(2):
        assert all(
            torch.equal(a, b)
            for one, other in zip(wrote[rank], read[rank], strict=True)
            for a, b in zip(one, other, strict=True)
        )
        tail = read[rank][2 * (STEPS + 1) :]
        assert all(
            torch.equal(a, b)
            for one, other in zip(tail, late[rank], strict=True)
            for a, b in zip(one, other, strict=True)
        )
    whole = CONFIG.model_copy(update={"epochs": 2})
    alone = taught(reading, images, whole, world_size=1)[0]
    for step in range(2 * STEPS):
        parts = [part for rank in range(2) for part in read[rank][2 * step : 2 * step + 2]]
        for index in range(3):
            assert torch.equal(alone[step][index], torch.cat([part[index] for part in parts]))


def test_an_epoch_is_there_when_all_its_parts_are(tmp_path: Path, images: ImagePipeline, ancestry: Ancestry) -> None:
    config = CONFIG.model_copy(update={"epochs": 1})
    loader = images.training_batches(config, rank=1, world_size=2)
    list(answers_of(tmp_path, images, ancestry).added_to(loader))
    answers = answers_of(tmp_path, images, ancestry)
    assert answers.cache.parts_of(0, STEPS * 32) is None
    added = answers.added_to(images.training_batches(config, rank=0, world_size=2))
    assert all(labels.asked for _, _, labels in added)
    assert len(answers.cache.parts_of(0, STEPS * 32) or []) == 2


def test_views_repeat_where_asked(tmp_path: Path, images: ImagePipeline, ancestry: Ancestry) -> None:
    config = CONFIG.model_copy(update={"epochs": 5, "view_epochs": 2})
    batches = list(images.training_batches(config))
    for step in range(STEPS):
        assert torch.equal(batches[step][0], batches[2 * STEPS + step][0])
        assert not torch.equal(batches[step][0], batches[STEPS + step][0])
    answers = answers_of(tmp_path, images, ancestry, config)
    for index, (batch, _, labels) in enumerate(answers.added_to(images.training_batches(config))):
        assert torch.equal(batch, batches[index][0]) and labels.asked == (index < 2 * STEPS)
        with torch.no_grad():
            assert torch.equal(labels.logits(), ancestry(batch))
    assert len(part_names(Store(str(tmp_path)), answers.cache.key)) == 2


def test_runs_of_other_seeds_share_the_views_of_one_seed(images: ImagePipeline) -> None:
    views = CONFIG.model_copy(update={"epochs": 1, "seed": 0, "view_seed": 3})
    for (one, _), (other, _) in zip(
        images.training_batches(views), images.training_batches(views.model_copy(update={"seed": 7})), strict=True
    ):
        assert torch.equal(one, other)
    same = CONFIG.model_copy(update={"epochs": 1})
    assert torch.equal(next(iter(images.training_batches(same)))[0], next(iter(images.training_batches(views)))[0])


def test_the_key_is_that_of_everything_an_answer_depends_on(images: ImagePipeline, ancestry: Ancestry) -> None:
    def facts(
        config: dict[str, Any] | None = None,
        augmentation: dict[str, Any] | None = None,
        teaching: dict[str, Any] | None = None,
        model: Ancestry = ancestry,
        precision: str = "float32",
        size: int = 8,
        train_set: Any = images.train,
    ) -> str:
        some = ImagePipeline(
            train_set,
            images.val,
            images.preprocessing.model_copy(update={"image_size": ImageShape.of(size)}),
            STRONG.model_copy(update=augmentation or {}),
        )
        found = facts_of(
            CONFIG.model_copy(update=config or {}), EXACT.model_copy(update=teaching or {}), some, model, precision
        )
        return json.dumps(found, sort_keys=True)

    torch.manual_seed(6)
    another = Ancestry(vision_transformer())
    nn.init.zeros_(another.model.head.bias)
    nn.init.ones_(another.model.head.weight)
    others = [
        facts(config={"seed": 4}),
        facts(config={"view_seed": 5}),
        facts(config={"batch_size": 64}),
        facts(augmentation={"repeats": 1}),
        facts(augmentation={"mixup": 0.1}),
        facts(augmentation={"interpolation": "bilinear"}),
        facts(teaching={"soft_labels_k": 3}),
        facts(teaching={"soft_labels_dtype": "float16"}),
        facts(model=another),
        facts(precision="bfloat16"),
        facts(size=16),
        facts(train_set=Subset(images.train, np.arange(100))),
    ]
    assert len({facts(), *others}) == len(others) + 1
    same = [
        facts(config={"lr": 1.0, "epochs": 9, "accumulation": 2, "view_epochs": 2}),
        facts(config={"seed": 9, "view_seed": 3}),
        facts(augmentation={"smoothing": 0.3, "crop_pct": 0.9}),
        facts(teaching={"tau": 3.0, "alpha": 0.5, "distillation": "hard", "soft_labels_k": 10}),
    ]
    assert set(same) == {facts()}
    once = {"repeats": 1}
    assert facts(augmentation=once) == facts(augmentation=once, config={"batch_size": 64}), "the order is the same"


def test_a_smaller_batch_needs_views_that_a_larger_one_dropped(tmp_path: Path, ancestry: Ancestry) -> None:
    images = some_images(AugmentationConfig(mixup=0.8))  # 133 images
    large, small = (CONFIG.model_copy(update={"epochs": 1, "batch_size": size}) for size in (60, 16))
    list(answers_of(tmp_path, images, ancestry, large).added_to(images.training_batches(large)))
    first = answers_of(tmp_path, images, ancestry, small)
    added = first.added_to(images.training_batches(small))  # 128 views, and 120 are there
    assert all(labels.asked for _, _, labels in added)
    again = answers_of(tmp_path, images, unasked(ancestry), large)
    kept = [labels.logits() for _, _, labels in again.added_to(images.training_batches(large))]
    with torch.no_grad():
        for (batch, _), logits in zip(images.training_batches(large), kept, strict=True):
            torch.testing.assert_close(logits, ancestry(batch), atol=1e-5, rtol=1e-5)


def test_answers_that_are_not_finite_are_never_kept(tmp_path: Path, images: ImagePipeline) -> None:
    broken = Ancestry(vision_transformer())
    broken.model.head.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        list(answers_of(tmp_path, images, broken).added_to(images.training_batches(CONFIG)))
    assert not (tmp_path / "softlabels").exists()
