"""python -m benchmarks.method_pages

Writes the pages and cost plots of `benchmarks/methods` again, from the committed tables. It trains nothing. Run it
after a change to the report of `learngene bench`.
"""

from __future__ import annotations

from pathlib import Path

import pandas

from ray_learngene.compare.arms import ArmPlan
from ray_learngene.compare.plan import plan_arms
from ray_learngene.compare.report import PAGE, PLOTS, RESULTS, RUNS, break_even_plot, page, runs_page
from ray_learngene.config import BenchConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {
    "any-size": "digits-any-size-bench",
    "cifar10": "cifar10-bench",
    "digits": "digits-bench",
    "digits-widths": "digits-widths-bench",
}
_CLASSES = 10


def main() -> None:
    for name in RECIPES:
        config, table, arms = read(name)
        (folder(name) / PAGE).write_text(page(config, table, arms))
        (folder(name) / RUNS).write_text(runs_page(config, table))
        break_even_plot(table, [row.name for row in arms]).savefig(folder(name) / PLOTS[1])
        print(folder(name) / PAGE)


def folder(name: str) -> Path:
    return ROOT / "benchmarks" / "methods" / name


def read(name: str) -> tuple[BenchConfig, pandas.DataFrame, list[ArmPlan]]:
    """Read a committed table, the recipe that made it, and the recipe's arms."""
    config = load_config(BenchConfig, {}, ROOT / "jobs" / "recipes" / f"{RECIPES[name]}.yaml")
    return config, pandas.read_parquet(folder(name) / RESULTS), plan_arms(config, _CLASSES)


if __name__ == "__main__":
    main()
