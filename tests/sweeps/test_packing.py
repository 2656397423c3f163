"""Packs: every trial in exactly one, none over the memory of a place, all places busy, none much later than alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.sweeps.capacity import _room
from ray_learngene.sweeps.packing import Load, Pack, Place, makespan, pack


@st.composite
def many_loads(draw: st.DrawFn) -> list[Load]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=40))
    seeds = draw(st.integers(1, 4))
    return [Load(number, number % seeds, size**1.5, 3 * size, 4 * size) for number, size in enumerate(sizes)]


PLACES = st.builds(Place, st.integers(1, 9), st.integers(1, 2000))


def sizes(packs: list[Pack]) -> list[int]:
    return [len(each.loads) for each in packs]


@given(many_loads(), PLACES, st.none() | st.integers(1, 50))
def test_every_trial_is_in_one_pack_that_fits_and_sees_the_same_views(
    loads: list[Load], place: Place, most: int | None
) -> None:
    packs = pack(loads, place, most)
    assert Counter(load.trial for each in packs for load in each.loads) == Counter(range(len(loads)))
    for each in packs:
        assert len({load.views for load in each.loads}) == 1
        kept, step = sum(load.kept for load in each.loads), max(load.step for load in each.loads)
        assert len(each.loads) == 1 or kept + step <= place.memory
        assert most is None or len(each.loads) <= most
    assert [each.work for each in packs] == sorted((each.work for each in packs), reverse=True)


@given(many_loads(), PLACES)
def test_packs_end_about_when_separate_trials_would_and_leave_no_place_empty(loads: list[Load], place: Place) -> None:
    packs = pack(loads, place)
    alone = pack(loads, place, most=1)
    assert sizes(alone) == [1] * len(loads)
    assert makespan(packs, place.count) <= 1.05 * makespan(alone, place.count) * (1 + 1e-9)
    assert len(packs) >= min(place.count, len(loads))


def trials(number: int, seeds: int = 1) -> list[Load]:
    return [Load((seed, size), seed, 10 + size, 1, 1) for seed in range(seeds) for size in range(number)]


@pytest.mark.parametrize(
    ("loads", "place", "most", "expected"),
    [
        (trials(8), Place(1, 100), None, [8]),
        (trials(8), Place(2, 100), None, [4, 4]),
        (trials(8), Place(8, 100), None, [1] * 8),
        (trials(8), Place(20, 100), None, [1] * 8),
        (trials(8), Place(1, 5), None, [4, 4]),  # memory for four at a time
        (trials(8), Place(1, 0.5), None, [1] * 8),
        (trials(8, seeds=2), Place(2, 100), None, [8, 8]),
        (trials(8, seeds=3), Place(2, 100), None, [8, 8, 4, 4]),  # of three whole ones, one would run alone at the end
        (trials(8), Place(20, 100), 8, [8]),
        (trials(8), Place(1, 100), 3, [3, 3, 2]),
    ],
)
def test_packs_of_a_sweep(loads: list[Load], place: Place, most: int | None, expected: list[int]) -> None:
    assert sorted(sizes(pack(loads, place, most)), reverse=True) == expected


def test_a_thousand_trials_on_many_places() -> None:
    packs = pack(trials(250, seeds=4), Place(64, 10**9))
    assert 64 <= len(packs) < 80


@pytest.mark.parametrize(
    ("share", "processes"), [(0.5, 4), (0.3, 6), (0.25, 8), (0.2, 10), (0.1, 20), (0.05, 40), (1, 2), (2, 1), (3, 0)]
)
def test_a_gpu_is_shared_by_as_many_processes_as_ray_puts_on_it(share: float, processes: int) -> None:
    assert _room({"CPU": 64, "GPU": 2}, 1, share) == processes
