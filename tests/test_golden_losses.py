"""Losses of small runs equal those of revision 71184e2 within 1e-5, on any CPU.

`python -m benchmarks.same_weights` compares weights bit by bit, but needs both revisions on one machine.
"""

from __future__ import annotations

import json

import pytest

from benchmarks.same_weights import ROOT, as_before
from tests.command_line import learngene
from tests.fixtures.write_store import LOSSES, TRAINED, histories_in

EXPECTED: dict[str, list[dict[str, float]]] = json.loads(LOSSES.read_text())["trained"]


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    store = tmp_path_factory.mktemp("golden") / "store"
    for command in as_before(ROOT, TRAINED):
        assert learngene(command, "--store", store) == 0
    return histories_in(store)


def test_the_same_models_are_trained(histories: dict[str, list[dict[str, float]]]) -> None:
    assert histories.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_are_those_of_the_old_revision(name: str, histories: dict[str, list[dict[str, float]]]) -> None:
    assert_same_losses(histories[name], EXPECTED[name])


def assert_same_losses(history: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(history) == len(expected)
    for epoch, before in zip(history, expected, strict=True):
        for key in ("epoch", "step", "lr", "loss", "distill_loss", "label_loss", "val_loss"):
            if key in before:
                assert epoch[key] == pytest.approx(before[key], rel=1e-5, abs=1e-6), f"{key} of epoch {before['epoch']}"
