"""`learngene plan`: which sizes meet which budget, and what a sweep will cost."""

from __future__ import annotations

from ray_learngene.config import PlanConfig
from ray_learngene.models.budgets import format_quantity
from ray_learngene.models.costs import training_memory
from ray_learngene.sweeps.plan import plan
from ray_learngene.terminal import Table, print_table


def print_plan(config: PlanConfig) -> None:
    """Print which specs are within which budget, which of them a sweep trains, and what it will cost."""
    planned = plan(config)
    selection, micro_batch = planned.selection, config.batch_size // config.accumulation
    table = Table(title=f"sizes from learngene {config.learngene}", title_justify="left", title_style="bold")
    for name in ("width", "depth", "parameters", "MACs", "inference memory", "training memory", "latency", "p90"):
        table.add_column(name, justify="right")
    for text in selection.chosen:
        limits = text.split(",")
        table.add_column("\n".join(limits), justify="center", min_width=max(map(len, limits)))
    for candidate in selection.candidates:
        latency = planned.latencies.get(candidate.spec)
        cells = [
            str(candidate.spec.width),
            str(candidate.spec.depth),
            format_quantity("params", candidate.costs["params"]),
            format_quantity("macs", candidate.costs["macs"]),
            format_quantity("memory", candidate.costs["memory"]),
            format_quantity("memory", training_memory(candidate.spec, micro_batch)),
            format_quantity("latency", latency.median_ms if latency else candidate.costs.get("latency")),
            format_quantity("latency", latency.p90_ms if latency else None),
        ]
        within = selection.admitting(candidate)
        for text, chosen in selection.chosen.items():
            cells.append("trained" if chosen is candidate else "✓" if text in within else "")
        table.add_row(*cells, style=None if latency else "dim")
    print_table(table)
    print(
        f"latency: batch {config.latency_batch}, {config.latency_dtype}, {config.latency_threads} thread(s), "
        f"{next(iter(planned.latencies.values())).device}; training memory: a micro-batch of {micro_batch} in fp32"
    )
    for note in (*selection.timing_notes(), *planned.outside):
        print(f"note: {note}")
    counts = f"{len(selection.specs)} sizes x {planned.arms} arms x {config.seeds} seeds"
    if config.lr_search:
        counts += f" x {config.lr_search} learning rates"
    if planned.steps is None:
        cost = f"together about {planned.flops:.3g} training FLOPs an image (give --data)"
    else:
        cost = (
            f"each {config.epochs} epochs = {planned.steps:,} steps = {planned.steps * config.batch_size:,} images; "
            f"together about {planned.flops:.3g} training FLOPs"
        )
    if planned.scratch_epochs:
        least, most = min(planned.scratch_epochs.values()), max(planned.scratch_epochs.values())
        cost += f"; arms without a learngene {least} to {most} epochs, at equal cost (--scratch cost)"
    if config.ancestry:
        cost += ", without those of the ancestry model that teaches"
    print(f"{planned.descendants} descendants ({counts}), {cost}")
