"""The order is a permutation of every epoch and does not know how many workers there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.data.sampler import Sample, WorkerBatches, global_batches
from ray_learngene.errors import UserError


@settings(max_examples=50)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 5), st.integers(0, 5))
def test_every_epoch_is_a_permutation_without_the_last_partial_batch(
    size: int, batch: int, seed: int, epoch: int
) -> None:
    if size < batch:
        with pytest.raises(UserError, match="lower --batch-size"):
            global_batches(size, batch, seed, epoch)
        return
    index, repeat = global_batches(size, batch, seed, epoch)
    assert index.shape == repeat.shape == (size // batch, batch)
    assert len(np.unique(index)) == index.size and index.min() >= 0 and index.max() < size
    assert not repeat.any()


def test_epochs_and_seeds_differ() -> None:
    orders = [global_batches(100, 10, seed, epoch)[0] for seed in (0, 1) for epoch in (0, 1)]
    assert all((left != right).any() for i, left in enumerate(orders) for right in orders[:i])
    assert (global_batches(100, 10, 1, 1)[0] == orders[3]).all()


@settings(max_examples=30)
@given(st.integers(20, 200), st.integers(2, 20), st.integers(2, 4))
def test_repeats(size: int, batch: int, repeats: int) -> None:
    index, repeat = global_batches(size, batch, 0, 0, repeats)
    views = list(zip(index.ravel().tolist(), repeat.ravel().tolist(), strict=True))
    assert index.shape == (size // batch, batch) and len(set(views)) == len(views)
    counts = np.unique(index, return_counts=True)[1]
    assert (counts == repeats).sum() >= len(counts) - 1, "every image but the last comes with all its views"
    assert (np.diff(repeat, axis=1) >= 0).all(), "first views come before second ones"


def merged(world_size: int, accumulation: int, start_step: int = 0, repeats: int = 1) -> list[list[Sample]]:
    """Return the global batches that all workers together read."""
    options = {"world_size": world_size, "accumulation": accumulation, "seed": 3, "epochs": 3, "repeats": repeats}
    workers = [list(WorkerBatches(70, 16, rank=rank, start_step=start_step, **options)) for rank in range(world_size)]
    return [
        [sample for worker in workers for micro in worker[step : step + accumulation] for sample in micro]
        for step in range(0, len(workers[0]), accumulation)
    ]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (3, 1), (3, 5)])
def test_global_batches_are_the_same_for_every_number_of_workers(
    world_size: int, accumulation: int, repeats: int
) -> None:
    alone = merged(1, 1, repeats=repeats)
    assert len(alone) == 12
    assert merged(world_size, accumulation, repeats=repeats) == alone
    assert merged(world_size, accumulation, start_step=6, repeats=repeats) == alone[6:]


def test_lengths() -> None:
    batches = WorkerBatches(70, 16, world_size=2, accumulation=2, seed=0, epochs=3, start_step=5)
    assert (batches.steps_per_epoch, batches.total_steps, len(batches)) == (4, 12, 14) and len(list(batches)) == 14
    assert list(WorkerBatches(70, 16, seed=0, epochs=0)) == []
    assert list(WorkerBatches(70, 16, seed=0, epochs=3, start_step=12)) == []


def test_a_batch_that_does_not_divide_is_dealt_in_shares_that_differ_by_one_unit() -> None:
    def sizes(world_size: int, accumulation: int, unit: int) -> list[int]:
        options = {"world_size": world_size, "accumulation": accumulation, "unit": unit, "seed": 0, "epochs": 1}
        workers = [WorkerBatches(70, 16, rank=rank, **options) for rank in range(world_size)]
        return [len(batch) for worker in workers for batch in list(worker)[:accumulation]]

    assert sorted(sizes(3, 1, unit=1)) == [5, 5, 6]
    assert sorted(sizes(3, 2, unit=1)) == [2, 2, 3, 3, 3, 3]
    assert sorted(sizes(3, 1, unit=2)) == [4, 6, 6]
    assert sizes(2, 2, unit=2) == [4, 4, 4, 4]


def test_a_batch_smaller_than_its_micro_batches() -> None:
    with pytest.raises(UserError, match="16 is less than an image for each of 3 workers with 6 micro-batches each"):
        WorkerBatches(70, 16, world_size=3, accumulation=6, seed=0, epochs=1)
    with pytest.raises(UserError, match="less than a pair for each of 3 workers .* choose 18 or more"):
        WorkerBatches(70, 16, world_size=3, accumulation=3, unit=2, seed=0, epochs=1)
