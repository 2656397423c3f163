"""From a learngene, budgets and depths to specs with their costs: what `plan` prints and `sweep` trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ray_learngene.budgets import Budget, Candidate, candidates, largest_within
from ray_learngene.config import SelectionConfig
from ray_learngene.costs import Latency, costs, measure_latency, training_memory
from ray_learngene.engine import resolve_device
from ray_learngene.errors import UserError
from ray_learngene.manifest import Manifest
from ray_learngene.methods import Learngene, create_method
from ray_learngene.methods.base import DESCRIPTION_FILE, WEIGHTS_FILE
from ray_learngene.specs import Spec, build
from ray_learngene.store import Store


@dataclass(frozen=True)
class Selection:
    """The candidates and, of them, the specs to train, largest first, with the budgets that chose them.

    Without budgets every candidate is trained.
    """

    candidates: tuple[Candidate, ...]
    specs: tuple[Candidate, ...]
    chosen: Mapping[str, Candidate]

    def admitting(self, candidate: Candidate) -> list[str]:
        """The budgets that a candidate is within."""
        return [text for text in self.chosen if Budget.parse(text).admits(candidate.costs)]


def load_learngene(config: SelectionConfig) -> tuple[Learngene, Manifest]:
    """The learngene of a configuration, verified, and its manifest."""
    store = Store(config.store)
    store.check(write=False)
    manifest = store.manifest("learngene", config.learngene)
    files = [store.read_bytes("learngene", config.learngene, name) for name in (WEIGHTS_FILE, DESCRIPTION_FILE)]
    return Learngene.from_bytes(*files), manifest


def parse_depths(text: str) -> list[int]:
    """`6-15` or `4,6,8` or a mix, as sorted distinct depths.

    Raises:
        UserError: the text is neither.
    """
    depths: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 1000:
            raise UserError(f"--depths {text}: cannot read {part.strip()!r}; write 6-15 or 4,6,8 (from 1 up)")
        depths.update(range(first, last + 1))
    return sorted(depths)


def check_texts(config: SelectionConfig) -> None:
    """Read budgets and depths, so that what is malformed is refused before images are."""
    for text in config.budgets:
        Budget.parse(text)
    if config.depths:
        parse_depths(config.depths)


def parse_arms(config: SelectionConfig, learngene: Learngene) -> tuple[str, ...]:
    """The arms, checked: each a known method, and one that expands a learngene must be the learngene's own."""
    if not config.arms or len(set(config.arms)) < len(config.arms):
        raise UserError(f"--arms {','.join(config.arms)}: give each arm once")
    for arm in config.arms:
        method = create_method(arm)
        if method.needs_learngene and method.name != learngene.method:
            raise UserError(
                f"--arms {arm}: the learngene {config.learngene!r} was made by {learngene.method!r}, "
                f"not by {method.name!r}"
            )
    return config.arms


def measured_latency(config: SelectionConfig) -> Callable[[Spec], Latency]:
    """Measures a spec on the device at hand, each spec once."""
    known: dict[Spec, Latency] = {}
    device = resolve_device()
    dtype = getattr(torch, config.latency_dtype)

    def measure(spec: Spec) -> Latency:
        if spec not in known:
            known[spec] = measure_latency(
                build(spec),
                spec.image,
                device=device,
                batch=config.latency_batch,
                dtype=dtype,
                threads=config.latency_threads,
            )
        return known[spec]

    return measure


def select(
    config: SelectionConfig, learngene: Learngene, classes: int, measure: Callable[[Spec], Latency]
) -> Selection:
    """The largest spec within each budget among the candidate depths; every candidate where there is no budget.

    Raises:
        UserError: a budget cannot be read, or nothing meets it.
    """
    budgets = [Budget.parse(text) for text in config.budgets]
    depths = parse_depths(config.depths) if config.depths else range(1, learngene.spec.depth + 1)
    changes: dict[str, Any] = {"classes": classes, **({"image": config.image_size} if config.image_size else {})}
    try:
        specs = [learngene.spec.replace(depth=depth, **changes) for depth in depths]
    except ValueError as error:
        raise UserError(f"--image-size {config.image_size}: {error}") from None
    with_latency = any(budget.needs_latency for budget in budgets)

    def cost(spec: Spec) -> dict[str, float]:
        return {**costs(spec), **({"latency": measure(spec).median_ms} if with_latency else {})}

    choices = candidates(specs, cost)
    if not budgets:
        return Selection(tuple(choices), tuple(choices), {})
    chosen = {budget.text: largest_within(budget, choices) for budget in budgets}
    return Selection(tuple(choices), tuple(choice for choice in choices if choice in chosen.values()), chosen)


def check_expansions(arms: tuple[str, ...], learngene: Learngene, selection: Selection) -> None:
    """Expand every arm at every size, so that what a method cannot do is said before anything starts."""
    for arm in arms:
        method = create_method(arm)
        for choice in selection.specs:
            method.expand(learngene if method.needs_learngene else None, choice.spec)


def cost_columns(spec: Spec, latency: Latency, micro_batch: int) -> dict[str, Any]:
    """The costs of a spec as columns of the results table; training memory is that of one micro-batch."""
    measured = latency.as_dict()
    columns = {"latency": measured.pop("median_ms"), "latency_p90": measured.pop("p90_ms")}
    columns["training_memory"] = training_memory(spec, micro_batch)
    return {**costs(spec), **columns, **{f"latency_{name}": value for name, value in measured.items()}}
