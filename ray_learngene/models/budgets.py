"""Budgets: limits on parameters, MACs, memory and latency, and the specs that meet them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_learngene.errors import NothingWithin, UserError

if TYPE_CHECKING:  # specs import torch, which `list` and `pull` do not need
    from ray_learngene.models.specs import Spec

# The quantities a budget may limit, with the factor of each unit suffix.
_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
QUANTITIES: dict[str, dict[str, float]] = {
    "params": _COUNT,
    "macs": _COUNT,
    "memory": _BYTES,
    "latency": _MILLISECONDS,
}
_LIMIT = re.compile(
    r"\s*([a-z]+)(?:@([\w.-]+(?:/[\w.-]+)?))?\s*(<=|<)\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*",
    re.IGNORECASE,
)
_EXAMPLE = '"params<=3M", "macs<=500M,latency<=8ms" or "memory<=64MB"'


@dataclass(frozen=True)
class Limit:
    """One upper bound; `value` is in parameters, MACs, bytes or milliseconds.

    Attributes:
        device: Of a latency: the device whose record in the store tells it; None measures it at hand.
    """

    quantity: str
    value: float
    strict: bool = False
    device: str | None = None

    @property
    def key(self) -> str:
        """The quantity's name among costs."""
        return f"{self.quantity}@{self.device}" if self.device else self.quantity

    def admits(self, cost: float) -> bool:
        return operator.lt(cost, self.value) if self.strict else operator.le(cost, self.value)


@dataclass(frozen=True)
class Budget:
    """Limits that must all hold. `text` is the user's text without spaces."""

    text: str
    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse `quantity<=number[unit]`; several limits are joined by commas.

        Raises:
            UserError: a part cannot be parsed; the message names it.
        """
        limits = tuple(_parse_limit(part, text) for part in text.split(","))
        return cls(re.sub(r"\s+", "", text), limits)

    @property
    def needs_latency(self) -> bool:
        return any(limit.quantity == "latency" and limit.device is None for limit in self.limits)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices whose latency is limited."""
        return tuple(dict.fromkeys(limit.device for limit in self.limits if limit.device))

    def admits(self, costs: Mapping[str, Any]) -> bool:
        """Check that costs (by quantity; latency in ms) are within every limit; an unknown cost is not."""
        return all(costs.get(limit.key) is not None and limit.admits(costs[limit.key]) for limit in self.limits)

    def __str__(self) -> str:
        return self.text


def _parse_limit(part: str, text: str) -> Limit:
    match = _LIMIT.fullmatch(part)
    if not match:
        raise UserError(f"budget {text!r}: cannot read {part.strip()!r}; write for example {_EXAMPLE}")
    quantity, device, comparison, number, unit = match[1].lower(), match[2], match[3], match[4], match[5].lower()
    if quantity not in QUANTITIES:
        raise UserError(f"budget {text!r}: unknown quantity {quantity!r}; choose one of {', '.join(QUANTITIES)}")
    if device and quantity != "latency":
        raise UserError(f"budget {text!r}: only latency depends on a device; leave out @{device}")
    units = QUANTITIES[quantity]
    if unit not in units:
        known = ", ".join(name for name in units if name)
        fault = f"is not measured in {unit!r}; units" if unit else "needs a unit"
        raise UserError(f"budget {text!r}: {quantity} {fault}: {known}")
    if float(number) <= 0:
        raise UserError(f"budget {text!r}: {part.strip()!r} admits nothing; give a positive number")
    return Limit(quantity, float(number) * units[unit], comparison == "<", device)


def parse_quantity(quantity: str, text: str) -> Budget:
    """Parse the budget of one flag, such as `--max-params 3M` or `--max-latency 8ms`."""
    return Budget.parse(f"{quantity}<={text}")


@dataclass(frozen=True)
class Candidate:
    """A spec with its costs by quantity (latency in ms, if measured)."""

    spec: Spec
    costs: Mapping[str, float]


def candidates(specs: Sequence[Spec], cost: Callable[[Spec], Mapping[str, float]]) -> list[Candidate]:
    """Compute the costs of specs and sort them, largest first."""
    return sorted((Candidate(spec, cost(spec)) for spec in specs), key=lambda one: -one.costs["params"])


def largest_within(budget: Budget, choices: Sequence[Candidate]) -> Candidate:
    """Choose the candidate with the most parameters that meets the budget.

    Raises:
        UserError: no candidate meets it; the message says by how much the nearest one exceeds each limit.
    """
    within = [choice for choice in choices if budget.admits(choice.costs)]
    if within:
        return max(within, key=lambda choice: choice.costs["params"])
    nearest = min(choices, key=lambda choice: max(choice.costs[limit.key] / limit.value for limit in budget.limits))
    excess = ", ".join(
        f"{limit.key} {format_quantity(limit.quantity, nearest.costs[limit.key])} is "
        f"{nearest.costs[limit.key] / limit.value:.2f}x the limit"
        for limit in budget.limits
        if not limit.admits(nearest.costs[limit.key])
    )
    raise NothingWithin(f"budget {budget}: nothing meets it; the nearest spec is depth {nearest.spec.depth}: {excess}")


def format_quantity(quantity: str, value: float | None) -> str:
    """Format a cost for display: `1.23 M`, `4.5 MB`, `0.81 ms`."""
    if value is None:
        return "-"
    if quantity == "latency":
        return f"{value:.3g} ms" if value < 999.5 else f"{value:,.0f} ms"
    unit = "B" if quantity == "memory" else ""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # 999,700 is 1 M, not 1e+03 k
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()
