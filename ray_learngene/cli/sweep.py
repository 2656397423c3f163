"""`learngene sweep`: train descendants of many sizes, and print the leaderboard."""

from __future__ import annotations

from ray_learngene.cli.leaderboard import print_leaderboard
from ray_learngene.config import SweepConfig
from ray_learngene.errors import RunError
from ray_learngene.pages.spending import spending_lines
from ray_learngene.store.costs import costed_rows
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import PAGE, RESULTS, read_settings
from ray_learngene.sweeps.sweep import sweep


def print_sweep(config: SweepConfig) -> None:
    """Train every descendant that is not finished yet, and print the leaderboard.

    Raises:
        RunError: some descendants failed; the leaderboard shows the others.
    """
    try:
        sweep(config)
    except RunError:
        _print_results(config)
        raise
    _print_results(config)


def _print_results(config: SweepConfig) -> None:
    store = Store.of(config)
    settings = read_settings(store, config.name) or {}
    print_leaderboard(costed_rows(store, config.name), settings.get("budgets"))
    for line in spending_lines(store, config.name):
        print(line)
    print(f"results: {store.uri}/sweeps/{config.name}/{RESULTS} and {PAGE}", flush=True)
