"""Differences between arms, paired over seeds, with the intervals that so few seeds allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import pandas
from scipy.stats import t as student

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, in points of top-1, and half of its 95 % interval (Student's t over seeds).

    The interval covers what a seed decides: initialisation, order and views. All models see the same test images.
    """

    mean: float
    half: float
    seeds: int

    @property
    def significant(self) -> bool:
        return abs(self.mean) > self.half

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """Return one value per seed; the interval of a single one is infinite."""
        if len(values) < 2:
            return cls(fmean(values), math.inf, len(values))
        quantile = float(student.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))


def paired(arm: pandas.DataFrame, other: pandas.DataFrame) -> Difference | None:
    """Compare two arms at the sizes, seeds and sets that both have; those of one seed are averaged before the test.

    Returns:
        None if they share no size and seed.
    """
    on = [column for column in ("set", "width", "depth", "seed") if column in arm]
    both = arm[[*on, "top1"]].merge(other[[*on, "top1"]], on=on, suffixes=("", "_other"))
    if not len(both):
        return None
    return Difference.of(list((both["top1"] - both["top1_other"]).groupby(both["seed"]).mean()))


def gains(moved: pandas.DataFrame, reference: str) -> dict[str, Difference]:
    """Average, over sets and sizes, what an arm gains over the reference, in points; paired over seeds."""
    other = moved[moved["arm"] == reference]
    arms = (name for name in moved["arm"].drop_duplicates() if name != reference)
    return {name: found for name in arms if (found := paired(moved[moved["arm"] == name], other))}


def sampling_half(top1: float, images: int) -> float:
    """Return half of the 95 % interval of one accuracy (in percent) that comes from the number of test images."""
    share = top1 / 100
    return 100 * 1.96 * math.sqrt(share * (1 - share) / images)
