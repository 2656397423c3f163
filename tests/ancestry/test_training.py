"""Training from the cache is the online training."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from ray_learngene.ancestry.cache import part_names
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.store.store import Store
from ray_learngene.training.objectives import DistillationLoss
from tests.ancestry.soft_label_runs import CONFIG, STEPS, Interrupted, answers_of, distilled, equal, unasked


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, images: ImagePipeline, ancestry: Ancestry, online: dict[str, Tensor]
) -> Path:
    """A store with all three epochs, kept by a run whose weights are those of the online one."""
    folder = tmp_path_factory.mktemp("filled")
    weights, read = distilled(folder, images, ancestry, answers_of(folder, images, ancestry))
    assert equal(weights, online) and read == 0
    return folder


def test_training_from_the_cache_is_the_online_training_bit_for_bit(
    filled: Path, images: ImagePipeline, ancestry: Ancestry, online: dict[str, Tensor]
) -> None:
    answers = answers_of(filled, images, unasked(ancestry))
    weights, read = distilled(filled, images, ancestry, answers, name="reading")
    assert equal(weights, online) and read == 3 * STEPS * 32


@pytest.mark.parametrize("stop_at", [STEPS + 2, 2 * STEPS])
def test_a_resumed_run_that_keeps_its_answers_is_the_online_training_too(
    tmp_path: Path, images: ImagePipeline, ancestry: Ancestry, online: dict[str, Tensor], stop_at: int
) -> None:
    """Whether it was interrupted in an epoch, whose answers are then not kept, or just after one was."""
    with pytest.raises(Interrupted):
        distilled(tmp_path, images, ancestry, answers_of(tmp_path, images, ancestry), stop_at=stop_at)
    resumed = answers_of(tmp_path, images, ancestry)
    weights, read = distilled(tmp_path, images, ancestry, resumed)
    assert equal(weights, online) and read == 0
    epochs = {name.partition("-")[0] for name in part_names(Store(str(tmp_path)), resumed.cache.key)}
    assert epochs == ({"0000", "0002"} if stop_at % STEPS else {"0000", "0001", "0002"})
    # the next run reads what is there and keeps the epoch that was interrupted
    again = answers_of(tmp_path, images, ancestry)
    weights, read = distilled(tmp_path, images, ancestry, again, name="again")
    assert equal(weights, online) and read == len(epochs) * STEPS * 32
    assert len(part_names(Store(str(tmp_path)), again.cache.key)) == 3


def test_top_k_in_float16_stays_near(
    tmp_path: Path, images: ImagePipeline, ancestry: Ancestry, online: dict[str, Tensor]
) -> None:
    """The whole run, both times: what is learned does not depend on whether an epoch was kept."""
    settings = {"soft_labels_k": 6, "soft_labels_dtype": "float16"}
    weights = [
        distilled(tmp_path, images, ancestry, answers_of(tmp_path, images, ancestry, **settings), name=name)[0]
        for name in ("writing", "reading")
    ]
    assert equal(*weights)
    moved = {name: (weights[0][name] - online[name]).abs().max() for name in online}
    assert 0 < max(moved.values()) < 0.05


def test_hard_distillation_reads_the_decision(tmp_path: Path, images: ImagePipeline, ancestry: Ancestry) -> None:
    loss = DistillationLoss("hard", alpha=0.5)
    config = CONFIG.model_copy(update={"epochs": 1, "warmup_epochs": 0})
    one = distilled(tmp_path, images, ancestry, None, name="online", config=config, loss=loss)[0]
    answers = answers_of(tmp_path, images, ancestry, config, soft_labels_k=1, soft_labels_dtype="float16")
    other = distilled(tmp_path, images, ancestry, answers, name="kept", config=config, loss=loss)[0]
    assert equal(one, other)
