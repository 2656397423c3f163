"""The largest size within a budget, among all combinations of widths and depths of stages.

At one width every block of a stage costs the same, so parameters and MACs are a sum over stages. A few models are
counted for each width, and all combinations follow from them. The chosen size is counted itself: what is returned is
exact, or an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_learngene.config.numbers import parse_numbers
from ray_learngene.errors import UserError
from ray_learngene.models.budgets import Budget, Candidate, candidates, largest_within
from ray_learngene.models.costs import costs
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted

_MOST = 10_000_000  # combinations of one width: a quarter of a second, and 80 MB for each quantity
_EXACT = ("params", "macs", "memory")


@dataclass(frozen=True)
class Grid:
    """The sizes of one width.

    Attributes:
        smallest: The spec with the first depth of every stage.
        stages: Depths of every stage to choose from.
        base: Costs of `smallest`.
        blocks: What one more block of each stage adds to them.
    """

    smallest: Spec
    stages: tuple[tuple[int, ...], ...]
    base: dict[str, int]
    blocks: tuple[dict[str, int], ...]

    @classmethod
    def of(cls, source: Spec, stages: Sequence[Sequence[int]]) -> Grid:
        """Count one model with the first depths, and one for every stage with a block more."""
        ordered = tuple(tuple(sorted(set(depths))) for depths in stages)
        first = tuple(depths[0] for depths in ordered)
        smallest = _at(source, first)
        base, blocks = costs(smallest), []
        for stage, depths in enumerate(ordered):
            more = base
            if len(depths) > 1:
                more = costs(_at(source, (*first[:stage], first[stage] + 1, *first[stage + 1 :])))
            blocks.append({name: more[name] - base[name] for name in _EXACT})
        return cls(smallest, ordered, base, tuple(blocks))

    def costs(self, name: str) -> NDArray[np.int64]:
        """Return a cost of all combinations `[depths of the first stage, ..., depths of the last]`."""
        total = np.array(self.base[name], dtype=np.int64)
        for depths, block in zip(self.stages, self.blocks, strict=True):
            total = np.add.outer(total, (np.array(depths, dtype=np.int64) - depths[0]) * block[name])
        return total

    def largest(self, budget: Budget) -> Candidate | None:
        """Return the size with the most parameters within the budget; None if none is within.

        Of equal sizes the first counts, with depths of early stages first.

        Raises:
            UserError: the model's costs are not a sum over stages.
        """
        allowed = np.ones([len(depths) for depths in self.stages], dtype=bool)
        for limit in budget.limits:
            cost = self.costs(limit.quantity)
            allowed &= cost < limit.value if limit.strict else cost <= limit.value
        if not allowed.any():
            return None
        found = np.unravel_index(int(np.where(allowed, self.costs("params"), -1).argmax()), allowed.shape)
        depths = tuple(stage[int(place)] for stage, place in zip(self.stages, found, strict=True))
        spec = _at(self.smallest, depths)
        chosen = Candidate(spec, costs(spec))
        if any(chosen.costs[name] != int(self.costs(name)[found]) for name in _EXACT):
            raise UserError(
                f"--stage-depths: blocks of one stage of {spec.architecture} differ in cost, so that sizes cannot be "
                "searched: list them with --depths"
            )
        return chosen


def _at(spec: Spec, depths: tuple[int, ...]) -> Spec:
    return spec.replace(depths=depths) if spec.depths else spec.replace(depth=depths[0])


def parse_stages(text: str, source: Spec) -> tuple[tuple[int, ...], ...]:
    """Parse the depths of every stage, `1-3/1-3/3-27/1-3`.

    Raises:
        UserError: a part cannot be read, or there is not one for each stage.
    """
    stages = tuple(tuple(parse_numbers("stage-depths", part)) for part in text.split("/"))
    count = len(source.depths or (1,))
    if len(stages) != count:
        raise UserError(
            f"--stage-depths {text}: {counted(len(stages), 'stage')}, "
            f"but {source.architecture or 'the model'} has {count}"
        )
    total = int(np.prod([len(depths) for depths in stages], dtype=np.float64))
    if total > _MOST:
        raise UserError(
            f"--stage-depths {text}: {total:,} combinations; the search takes {_MOST:,} of one width at most"
        )
    return stages


def largest_of_grids(budget: Budget, grids: Sequence[Grid]) -> Candidate:
    """Return the largest size within a budget among the sizes of several widths.

    Raises:
        UserError: the budget limits a latency, or no size is within it; the message then says by how much the smallest
            exceeds it.
    """
    timed = next((limit for limit in budget.limits if limit.quantity not in _EXACT), None)
    if timed is not None:
        raise UserError(f"budget {budget}: {timed.quantity} is measured size by size: list sizes with --depths instead")
    found = [each for grid in grids if (each := grid.largest(budget)) is not None]
    return largest_within(budget, found or candidates([grid.smallest for grid in grids], costs))
