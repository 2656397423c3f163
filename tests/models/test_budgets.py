import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.models import costs
from ray_learngene.models.budgets import Budget, candidates, format_quantity, largest_within
from ray_learngene.models.specs import PRESETS

CHOICES = candidates([PRESETS["nano"].replace(depth=depth) for depth in range(1, 17)], costs.costs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("params<=3M", [("params", 3e6, False)]),
        (" macs < 500m , latency<=8ms ", [("macs", 5e8, True), ("latency", 8.0, False)]),
        ("memory<=64MiB", [("memory", 64 * 2**20, False)]),
        ("latency<=0.5s", [("latency", 500.0, False)]),
        ("params<=1e5", [("params", 1e5, False)]),
    ],
)
def test_parse(text: str, expected: list[tuple[str, float, bool]]) -> None:
    assert [(limit.quantity, limit.value, limit.strict) for limit in Budget.parse(text).limits] == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("params", "cannot read 'params'"),
        ("params=3M", "cannot read"),
        ("weights<=3M", "unknown quantity 'weights'"),
        ("params<=3ms", "not measured in 'ms'"),
        ("latency<=8", "latency needs a unit: us, ms, s"),
        ("params<=0", "admits nothing"),
        ("params<=3M,", "cannot read ''"),
    ],
)
def test_a_malformed_budget_names_its_bad_part(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Budget.parse(text)


@given(st.integers(min_value=40_000, max_value=1_000_000))
def test_largest_within_is_within_and_nothing_larger_is(limit: int) -> None:
    budget = Budget.parse(f"params<={limit}")
    chosen = largest_within(budget, CHOICES)
    assert chosen.costs["params"] <= limit
    assert not any(chosen.costs["params"] < other.costs["params"] <= limit for other in CHOICES)


def test_an_impossible_budget_says_by_how_much() -> None:
    smallest = CHOICES[-1].costs["params"]
    with pytest.raises(UserError, match=r"depth 1: params .* is 2\.00x the limit"):
        largest_within(Budget.parse(f"params<={smallest / 2}"), CHOICES)


def test_an_unknown_cost_is_not_within_a_limit() -> None:
    assert not Budget.parse("latency<=8ms").admits({"params": 1})


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        ("params", 1_234_567, "1.23 M"),
        ("memory", 4_500_000, "4.5 MB"),
        ("latency", 0.8123, "0.812 ms"),
        ("macs", 12, "12"),
    ],
)
def test_format_quantity(quantity: str, value: float, text: str) -> None:
    assert format_quantity(quantity, value) == text
