"""A model of latency: what a few measured sizes of one device tell of all others.

One image costs a part that grows with the width (patch embedding and head), and for each layer parts that grow with the
width (norms, activations, attention) and with its square (matrix products), and constant parts (starts of kernels). No
part can be negative: this is what keeps a fit of four sizes from bending where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# Weights of the shares of parts in the sum of squares: they only decide among parts that fit equally well.
_TIE, _TIE_OF_CONSTANTS = 2e-3, 2e-2
# Least error of a width that was not timed itself: the largest miss in benchmarks/latency_prediction.py. Caches and
# kernels make steps between widths, of which neighbours tell nothing.
_UNTIMED_WIDTH = 0.07


class Size(Protocol):
    """What decides a latency, among sizes of one kind."""

    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def depths(self) -> tuple[int, ...] | None: ...


@dataclass(frozen=True)
class LatencyModel:
    """Costs of the parts, fitted to measured sizes.

    Attributes:
        sizes: Those it was fitted to.
        across_widths: Predicts other widths too.
        inside: Relative error of predictions within the range of measured widths and depths: the largest with which a
            measured size is predicted from others that lie around it, and how repeatable the measurement was.
        outside: The same beyond that range: of all measured sizes.
    """

    sizes: tuple[Size, ...]
    parts: Array
    across_widths: bool
    inside: float
    outside: float

    @classmethod
    def fit(
        cls, sizes: Sequence[Size], milliseconds: Sequence[float], spread: float, across_widths: bool
    ) -> LatencyModel | None:
        """Fit measured sizes; None where they are too few to tell an error.

        Args:
            spread: How far repeated measurements of a size differ, relatively.
        """
        columns, values = _columns(sizes, across_widths), np.array(milliseconds)
        inside: list[float] = []
        outside: list[float] = []
        for index, size in enumerate(sizes):
            others = [*sizes[:index], *sizes[index + 1 :]]
            if _tells(others, across_widths):
                rest = np.arange(len(sizes)) != index
                error = abs(
                    float(columns[index] @ _fit(columns[rest], values[rest], across_widths)) / values[index] - 1
                )
                (inside if _around(others, size) else outside).append(error)
        if not inside + outside:
            return None
        parts = _fit(columns, values, across_widths)
        return cls(tuple(sizes), parts, across_widths, max(inside or outside) + spread, max(inside + outside) + spread)

    def predict(self, size: Size) -> tuple[float, float]:
        """Return the milliseconds of a size, and their relative error."""
        milliseconds = float((_columns([size], self.across_widths) @ self.parts)[0])
        untimed = size.width not in {one.width for one in self.sizes}
        error = self.inside if _around(self.sizes, size) else self.outside
        return milliseconds, max(error, _UNTIMED_WIDTH if untimed else 0.001)


def _around(sizes: Sequence[Size], size: Size) -> bool:
    """Return whether a size lies within the ranges of the widths and depths of others."""
    positions = np.array([(one.width, *(one.depths or (one.depth,))) for one in (*sizes, size)])
    return bool((positions[:-1].min(0) <= positions[-1]).all() and (positions[-1] <= positions[:-1].max(0)).all())


def _columns(sizes: Sequence[Size], across_widths: bool) -> Array:
    """How often each part counts in each size."""
    if not across_widths:
        return np.array([[1.0, *(one.depths or (one.depth,))] for one in sizes])
    scaled = [(one.depth, one.width / 64) for one in sizes]
    return np.array([[width, depth * width, depth * width**2, depth + 1.0] for depth, width in scaled])


def _tells(sizes: Sequence[Size], across_widths: bool) -> bool:
    """Return whether sizes tell the parts apart."""
    if across_widths:
        return len(sizes) > 2 and len({one.width for one in sizes}) > 1 and len({one.depth for one in sizes}) > 1
    columns = _columns(sizes, across_widths)
    return bool(len(sizes) and np.linalg.matrix_rank(columns) == columns.shape[1])


def _fit(columns: Array, values: Array, across_widths: bool) -> Array:
    """Least squares of relative errors among costs that are not negative: the best over all sets of parts."""
    count = columns.shape[1]
    shares = columns / values[:, None]
    ties = np.zeros(count)
    if across_widths:
        ties[:], ties[-1] = _TIE, _TIE_OF_CONSTANTS
    matrix = np.concatenate([shares, np.diag(ties * shares.mean(0))])
    wanted = np.concatenate([np.ones(len(values)), np.zeros(count)])
    least, best = float("inf"), np.zeros(count)
    for chosen in (list(some) for length in range(1, count + 1) for some in combinations(range(count), length)):
        costs = np.linalg.lstsq(matrix[:, chosen], wanted, rcond=None)[0]
        squares = float(((matrix[:, chosen] @ costs - wanted) ** 2).sum())
        if (costs >= 0).all() and squares < least:
            least, best = squares, np.zeros(count)
            best[chosen] = costs
    return best
