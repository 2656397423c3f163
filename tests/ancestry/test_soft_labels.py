"""What is kept of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from ray_learngene.ancestry.cache import FILE, from_table, to_table, write_table
from ray_learngene.ancestry.model import Ancestry
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.training.soft_labels import SoftLabels
from tests.ancestry.soft_label_runs import CONFIG


@pytest.fixture(scope="module")
def logits(ancestry: Ancestry, images: ImagePipeline) -> Tensor:
    with torch.no_grad():
        return torch.cat([ancestry(batch) for batch, _ in images.training_batches(CONFIG)])


def test_all_classes_in_float32_are_the_logits_themselves(logits: Tensor) -> None:
    assert torch.equal(SoftLabels.of(logits, 16, "float32").logits(), logits)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_probabilities_are_within_the_stated_bound(logits: Tensor, k: int, dtype: Any) -> None:
    kept = SoftLabels.of(logits, k, dtype).logits()
    true, read = logits.double().softmax(-1), kept.double().softmax(-1)
    lost = 1 - true.topk(k).values.sum(-1)
    bound = lost + (np.log(10) / 2048 if dtype == "float16" else 0) + 1e-6
    assert ((true - read).abs().sum(-1) / 2 <= bound).all()
    assert torch.equal(kept.argmax(-1), logits.argmax(-1)), "hard distillation sees the same decisions"
    kept_mass = read.gather(1, true.topk(k).indices).sum(-1)
    torch.testing.assert_close(kept_mass, 1 - lost, atol=2e-3, rtol=0)


def test_the_mean_is_kept_where_a_single_logit_is_not() -> None:
    logits = torch.tensor([[3.0, 1.0, -1.0, -1.0]])
    assert torch.allclose(SoftLabels.of(logits, 2, "float32").logits(), logits), "equal logits are spread as they were"
    assert torch.isfinite(SoftLabels.of(torch.tensor([[0.0, -1e9]]), 2, "float16").logits()).all()


@pytest.mark.parametrize(("k", "dtype"), [(4, "float16"), (4, "float32"), (10, "float16"), (10, "float32")])
def test_parquet_keeps_every_bit(tmp_path: Path, logits: Tensor, k: int, dtype: Any) -> None:
    labels = SoftLabels.of(logits, k, dtype)
    views = np.random.default_rng(0).permutation(len(labels))
    write_table(to_table(views, labels), tmp_path / FILE)
    numbers, read = from_table(pyarrow.parquet.read_table(tmp_path / FILE), 10)
    assert np.array_equal(numbers, views)
    for name in ("values", "classes", "rest"):
        before, after = getattr(labels, name), getattr(read, name)
        assert (before is None and after is None) or (torch.equal(before, after) and before.dtype == after.dtype)
