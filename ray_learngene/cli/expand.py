"""`learngene expand`: what was made, and what is known of it."""

from __future__ import annotations

from ray_learngene.config import ExpandConfig
from ray_learngene.delivery.expand import expand, notes_of, size_text
from ray_learngene.models.budgets import format_quantity
from ray_learngene.progress import counted
from ray_learngene.terminal import print_columns

_MOST_NOTES = 3


def print_expansions(config: ExpandConfig) -> None:
    """Expand, and print the models with their costs and accuracy."""
    made = expand(config)
    if config.many:
        rows = [
            (
                str(one.path.name),
                *(format_quantity(name, one.facts[name]) for name in ("params", "macs", "memory")),
                one.facts["accuracy"],
            )
            for one in made
        ]
        print_columns(("model", "parameters", "MACs", "memory", "accuracy"), rows, right=(1, 2, 3))
        print(f"expanded {config.learngene} to {counted(len(made), 'model')} in {made[0].path.parent}")
    else:
        print(f"expanded {config.learngene} to {made[0].path}")
        print(size_text(made[0].spec))
        print(made[0].facts["accuracy"])
    notes = notes_of(made)
    for note in notes[:_MOST_NOTES]:
        print(f"note: {note}")
    if len(notes) > _MOST_NOTES:
        print(f"note: {counted(len(notes) - _MOST_NOTES, 'more note')} in the metrics.json of each model")
