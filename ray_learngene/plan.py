"""The plan of a sweep, before anything is trained."""

from __future__ import annotations

from rich.table import Table

from ray_learngene.budgets import format_quantity
from ray_learngene.candidates import (
    Selection,
    check_expansions,
    load_learngene,
    measured_latency,
    parse_arms,
    select,
)
from ray_learngene.config import PlanConfig
from ray_learngene.costs import training_memory
from ray_learngene.data import open_image_sets
from ray_learngene.terminal import print_table

# The backward pass costs about twice the forward one.
_TRAINING_PASSES = 3


def plan(config: PlanConfig) -> tuple[Selection, int]:
    """The specs that a sweep with these settings would train, and its number of descendants (trials included).

    Raises:
        UserError: a budget that nothing meets (says by how much), or whatever a sweep would refuse.
    """
    learngene, _ = load_learngene(config)
    arms = parse_arms(config, learngene)
    selection = select(config, learngene, learngene.spec.classes, measured_latency(config))
    check_expansions(arms, learngene, selection)
    return selection, len(selection.specs) * len(arms) * config.seeds * max(1, config.lr_search)


def print_plan(config: PlanConfig) -> None:
    """Print which specs meet which budget, and what the sweep will cost."""
    selection, descendants = plan(config)
    images = len(open_image_sets(config).train) if config.data else 1
    steps = images // config.batch_size * config.epochs
    views = steps * config.batch_size if config.data else 1
    measure = measured_latency(config)
    table = Table(title=f"sizes from learngene {config.learngene}", title_justify="left", title_style="bold")
    if selection.chosen:
        table.add_column("budget")
    for name in ("depth", "parameters", "MACs", "inference memory", "latency (median, p90)", "training memory"):
        table.add_column(name, justify="right")
    per_arm = descendants // len(selection.specs)
    total = 0
    for choice in selection.specs:
        latency = measure(choice.spec)
        total += _TRAINING_PASSES * int(choice.costs["macs"]) * views * per_arm
        cells = [
            str(choice.spec.depth),
            format_quantity("params", choice.costs["params"]),
            format_quantity("macs", choice.costs["macs"]),
            format_quantity("memory", choice.costs["memory"]),
            f"{format_quantity('latency', latency.median_ms)}, {format_quantity('latency', latency.p90_ms)}",
            format_quantity("memory", training_memory(choice.spec, config.batch_size // config.accumulation)),
        ]
        if selection.chosen:
            cells.insert(0, "\n".join(text for text, chosen in selection.chosen.items() if chosen == choice))
        table.add_row(*cells)
    print_table(table)
    print(
        f"latency: batch {latency.batch}, {latency.dtype}, {latency.threads} thread(s), {latency.device}; "
        f"training memory: one micro-batch of {config.batch_size // config.accumulation} in fp32"
    )
    arms = f"{len(selection.specs)} sizes x {len(config.arms)} arms x {config.seeds} seeds"
    if config.lr_search:
        arms += f" x {config.lr_search} learning rates"
    if config.data:
        print(
            f"{descendants} descendants ({arms}), each {config.epochs} epochs = {steps:,} steps = {views:,} images; "
            f"together about {2 * total:.3g} training FLOPs"
        )
    else:
        print(
            f"{descendants} descendants ({arms}); together about {2 * total:.3g} training FLOPs per image (give --data)"
        )
