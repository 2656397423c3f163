"""`learngene gc`: print what a store no longer needs, and delete it with --delete."""

from __future__ import annotations

from datetime import timedelta

from ray_learngene.config import GcConfig
from ray_learngene.models.budgets import format_quantity
from ray_learngene.store.gc import Garbage, delete, garbage_of
from ray_learngene.store.store import Store
from ray_learngene.terminal import Table, print_table


def print_garbage(config: GcConfig) -> list[Garbage]:
    """Print what the store no longer needs, delete it if the configuration says so, and return it."""
    store = Store.of(config)
    found = garbage_of(store, config)
    if not found:
        print(f"nothing to remove in {store.uri}: all of it is in use, or younger than {_text(config.age)}")
        return found
    table = Table("what", "where", "size", "last changed", title=f"not needed in {store.uri}", title_justify="left")
    table.columns[2].justify = "right"
    for one in found:
        table.add_row(one.what, one.path, format_quantity("memory", one.bytes), f"{one.changed:%Y-%m-%d %H:%M}")
    print_table(table)
    if config.delete:
        found = delete(found)
    size = format_quantity("memory", sum(one.bytes for one in found))
    print(
        f"{len(found)} removed, {size}" if config.delete else f"{len(found)} to remove, {size}: add --delete to do so"
    )
    return found


def _text(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    return f"{minutes // 60}h" if minutes and minutes % 60 == 0 else f"{minutes}m"
