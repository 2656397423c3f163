"""The committed benchmark pages are what their committed tables say."""

from __future__ import annotations

import functools

import pytest

from benchmarks import method_pages
from benchmarks.method_pages import RECIPES, folder
from ray_learngene.compare.report import PAGE, RUNS, page, runs_page
from ray_learngene.compare.summary import summarise

read = functools.cache(method_pages.read)


@pytest.mark.parametrize("name", RECIPES)
def test_a_committed_page_is_written_from_its_table(name: str) -> None:
    config, table, arms = read(name)
    assert (folder(name) / PAGE).read_text() == page(config, table, arms), "run python -m benchmarks.method_pages"
    assert (folder(name) / RUNS).read_text() == runs_page(config, table)


def test_every_committed_table_has_a_page() -> None:
    assert {path.parent.name for path in folder("").glob("*/results.parquet")} == set(RECIPES)


@pytest.mark.parametrize(
    ("name", "arm", "flops", "seconds"),
    [
        ("digits", "any-size", 4.8, 2.2),
        ("digits", "any-size-short", 5.9, 2.5),
        ("cifar10", "any-size", 5.1, 3.9),
        ("cifar10", "any-size-short", 8.6, 6.7),
        ("digits-widths", "any-size-long", 1.8, 1.3),
    ],
)
def test_the_factors_in_the_docs_count_teaching(name: str, arm: str, flops: float, seconds: float) -> None:
    config, table, _ = read(name)
    row = summarise(table, [arm], config.reference)[0]
    assert (round(row["saving"], 1), round(row["saving_seconds"], 1)) == (flops, seconds)
