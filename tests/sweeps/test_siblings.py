"""Descendants trained side by side are those trained alone, bit for bit, whatever happens to one of them."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import SweepConfig
from ray_learngene.data.image_set import Subset
from ray_learngene.data.loader import _Augmented
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.delivery.latency import Latency, measure_latency
from ray_learngene.errors import Interrupted, RunError
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.descendant import SweepContext, descendant
from ray_learngene.sweeps.descendant_run import DescendantTask
from ray_learngene.sweeps.selection import cost_columns
from ray_learngene.sweeps.siblings import train_descendant, train_siblings
from ray_learngene.sweeps.sweep import sweep
from ray_learngene.training.clock import Clock, shared_by
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.fitting import Fitting
from tests.sweeps.test_descendant import PREPROCESSING, SPEC, inputs, weights

STEPS, BATCH = 3, 16  # of an epoch
# arm, depth, learning rate
MEMBERS = [("sws", 2, 1e-3), ("scratch", 3, 1e-3), ("wave:fit=4@wave", 2, 4e-3), ("sws", 1, 2e-3), ("scratch", 2, 1e-3)]
TIMES = {"seconds", "overhead_seconds", "fit_seconds", "device_seconds", "fit_device_seconds", "load"}


@functools.cache
def latency(depth: int) -> Latency:
    return measure_latency(SPEC.replace(depth=depth))


@dataclasses.dataclass
class Family:
    """A store, what its descendants have in common, and those of `MEMBERS`."""

    config: SweepConfig
    images: ImagePipeline
    tunings: list[DescendantTask]
    ancestry: Ancestry | None = None

    @property
    def shared(self) -> SweepContext:
        return SweepContext(self.config, self.images, self.ancestry, Store(self.config.store))

    @property
    def names(self) -> list[str]:
        return [tuning.one.name for tuning in self.tunings]

    def reporting(self, report: Callable[[str, dict[str, Any]], None]) -> Family:
        return dataclasses.replace(
            self,
            tunings=[
                dataclasses.replace(each, report=lambda metrics, name=each.one.name: report(name, metrics))
                for each in self.tunings
            ],
        )

    def together(self) -> dict[str, dict[str, Any] | RunError]:
        ended: dict[str, Any] = {}

        def tell(tuning: DescendantTask, outcome: dict[str, Any] | RunError) -> None:
            assert tuning.one.name not in ended, "told twice"
            ended[tuning.one.name] = outcome

        train_siblings(self.tunings, self.shared, tell)
        return ended

    def alone(self) -> dict[str, dict[str, Any]]:
        return {tuning.one.name: train_descendant(tuning, self.shared) for tuning in self.tunings}


def family(store: Path, members: Sequence[tuple[Any, ...]] = MEMBERS, **changes: Any) -> Family:
    config, images, stored = inputs(store)
    settings = {"batch_size": BATCH, "accumulation": 2, "drop_path": 0.2, "ema": 0.9, "mixup": 0.8, "cutmix": 1.0}
    config = config.model_copy(update={**settings, "checkpoint_seconds": 1e6, **changes})
    images = ImagePipeline(
        Subset(images.train, torch.arange(STEPS * BATCH).numpy()), Subset(images.val, torch.arange(30).numpy()),
        PREPROCESSING, config,
        choice=Subset(images.train, torch.arange(900, 960).numpy()) if config.publish == "best" else None,
    )  # fmt: skip
    method = create_method("wave:counts=2-2-4-4")
    torch.manual_seed(1)
    wave = method.extract(method.auxiliary(SPEC)).describe(labels=images.train.classes, preprocessing={})
    genes = {"sws": stored, "wave": StoredLearngene(wave, stored.manifest)}

    shared = SweepContext(config, images, None, Store(config.store))

    def tuning(arm: str, depth: int, lr: float, epochs: int | None = None) -> DescendantTask:
        spec: Spec = SPEC.replace(depth=depth)
        gene = genes.get(arm.partition(":")[0])
        costs = cost_columns(spec, latency(depth), config.batch_size // config.accumulation)
        return DescendantTask(descendant(Arm.parse(arm, "digits"), spec, 3, lr, shared, gene, epochs), gene, costs)

    return Family(config, images, [tuning(*member) for member in members])


def published(made: Family, folder: Path) -> dict[str, dict[str, Tensor]]:
    return {
        tuning.one.name: weights(Path(made.config.store), tuning.one, folder / tuning.one.name)
        for tuning in made.tunings
    }


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}


def history(made: Family, name: str) -> list[dict[str, float]]:
    entries = Store(made.config.store).manifest("descendant", f"s/{name}").metadata["history"]
    return [{key: value for key, value in entry.items() if "second" not in key} for entry in entries]


def assert_equal(made: Family, other: Family, names: Sequence[str] | None = None) -> None:
    """Weights, averages, histories and rows."""
    for name in names or made.names:
        one, two = (Store(each.config.store).manifest("descendant", f"s/{name}") for each in (made, other))
        assert {file.path: file.sha256 for file in one.files if file.path.endswith("safetensors")} == {
            file.path: file.sha256 for file in two.files if file.path.endswith("safetensors")
        }, name
        assert history(made, name) == history(other, name)
        assert without_times(one.metadata["row"]) == without_times(two.metadata["row"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Family:
    made = family(tmp_path_factory.mktemp("alone") / "store")
    made.alone()
    return made


def test_siblings_are_those_trained_alone_and_every_view_is_drawn_once(
    alone: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    augmented = _Augmented._augmented

    def counted(self: _Augmented, sample: Any) -> Any:
        drawn.append(sample)
        return augmented(self, sample)

    monkeypatch.setattr(_Augmented, "_augmented", counted)
    made = family(tmp_path / "store")
    rows = made.together()
    assert_equal(made, alone)
    assert rows == {name: Store(made.config.store).manifest("descendant", f"s/{name}").metadata["row"] for name in rows}
    fitted = 4 * BATCH  # views that one of them was fitted on before
    assert len(drawn) == 2 * STEPS * BATCH + fitted and len(set(drawn)) == 2 * STEPS * BATCH


def test_siblings_of_other_lengths_are_those_trained_alone_and_end_when_they_do(tmp_path: Path) -> None:
    members = [("wave:fit=4@wave", 2, 4e-3), ("wave:fit=1@wave", 2, 4e-3), ("scratch", 1, 1e-3, 4)]
    made, other = (family(tmp_path / name, members, publish="best") for name in ("together", "alone"))
    *short, long = made.names
    store = Store(made.config.store)
    ended: dict[str, Any] = {}
    held: list[str] = []

    def killed(name: str, metrics: dict[str, Any]) -> None:
        if name == long and metrics["epoch"] == 3:
            gc.collect()
            held.extend(type(one).__name__ for one in gc.get_objects() if isinstance(one, (TorchEngine, Fitting)))
            raise KeyboardInterrupt

    killable = made.reporting(killed)
    with pytest.raises(KeyboardInterrupt):
        train_siblings(killable.tunings, made.shared, lambda tuning, end: ended.update({tuning.one.name: end}))
    rows = {name: store.manifest("descendant", f"s/{name}").metadata["row"] for name in short}
    assert ended == rows, "the store holds what has ended, and its end was told, while the longest trained on"
    assert held == ["TorchEngine"], "what has ended takes no memory for weights, moments or adapters"
    assert not store.exists("descendant", f"s/{long}")
    assert {name: row for name, row in made.together().items() if name != long} == rows, "nothing is trained again"
    other.alone()
    assert_equal(made, other)
    rows = {name: store.manifest("descendant", f"s/{name}").metadata["row"] for name in made.names}
    assert [row["steps"] for row in rows.values()] == [2 * STEPS, 2 * STEPS, 4 * STEPS]
    assert [row["fit_steps"] for row in rows.values()] == [4, 1, 0]


class Damaged(Subset):
    """Two of its images cannot be read."""

    def open(self, index: int) -> Image.Image:
        if index in (1, 17):
            raise OSError("damaged")
        return super().open(index)


def test_images_that_cannot_be_read_are_skipped_alike_and_counted_for_each(tmp_path: Path) -> None:
    made, other = (family(tmp_path / name, MEMBERS[:3], unreadable="skip") for name in ("together", "alone"))
    for each in (made, other):
        sets = (Damaged(one.whole, one.indices) for one in (each.images.train, each.images.val))
        each.images = ImagePipeline(*sets, PREPROCESSING, each.config, unreadable="skip")
    rows = made.together()
    other.alone()
    assert_equal(made, other)
    assert [row["unreadable"] for row in rows.values() if isinstance(row, dict)] == [4, 4, 4]


def killed_at(epoch: int, victims: Sequence[str]) -> Callable[[str, dict[str, Any]], None]:
    def report(name: str, metrics: dict[str, Any]) -> None:
        if name in victims and metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    return report


def test_siblings_killed_at_different_steps_go_on_together(alone: Family, tmp_path: Path) -> None:
    made = family(tmp_path / "store", checkpoint_seconds=0)
    for members, epoch in ((slice(0, 2), 1), (slice(2, 3), 2)):
        some = dataclasses.replace(made, tunings=made.tunings[members])
        with pytest.raises(KeyboardInterrupt):
            some.reporting(killed_at(epoch, some.names)).together()
    store = Store(made.config.store)
    assert len(store.manifests("checkpoint")) == 3 and not store.manifests("descendant")
    assert made.together().keys() == set(made.names)
    assert_equal(made, alone)
    assert not store.manifests("checkpoint")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_of_every_sibling_at_its_very_step(
    number: signal.Signals, alone: Family, tmp_path: Path
) -> None:
    made = family(tmp_path / "store")
    taken: list[tuple[str, float]] = []

    def terminated(name: str, metrics: dict[str, Any]) -> None:
        if "top1" in metrics:  # else a step on the way to the next epoch, or where a run goes on
            taken.append((name, metrics["epoch"]))
            if metrics["epoch"] == 1 and name == made.names[1]:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as interrupted:
        made.reporting(terminated).together()
    assert (interrupted.value.done, interrupted.value.total) == (STEPS, 2 * STEPS)
    assert made.reporting(terminated).together().keys() == set(made.names)
    assert sorted(taken) == sorted((name, epoch) for name in made.names for epoch in (0, 1, 2)), (
        "nothing was done twice"
    )
    assert_equal(made, alone)


def out_of_memory() -> None:
    torch.empty(2**50)


def unexpected() -> None:
    raise ValueError("unexpected")


def test_one_that_runs_out_of_memory_is_trained_alone_afterwards(alone: Family, tmp_path: Path) -> None:
    made = family(tmp_path / "store", checkpoint_seconds=0)
    victim, *others = made.names
    seen: list[str] = []

    def report(name: str, metrics: dict[str, Any]) -> None:
        if name == victim and metrics["epoch"] == 1 and name not in seen:
            seen.append(name)
            out_of_memory()

    ended = made.reporting(report).together()
    assert list(ended)[-1] == victim and set(ended) == {victim, *others} and seen
    assert_equal(made, alone)


def test_what_ends_one_leaves_the_others_as_they_are(tmp_path: Path, alone: Family) -> None:
    """A loss that is not finite, a store that refuses a checkpoint, and an unforeseen error."""
    made = family(tmp_path / "store", [("sws", 2, 1e30), *MEMBERS], checkpoint_seconds=0)
    nan, refused, broken, *others = made.names
    taken = Path(made.config.store) / "checkpoints" / "s" / refused
    taken.parent.mkdir(parents=True)
    taken.write_text("a file where the store wants a folder")

    def report(name: str, metrics: dict[str, Any]) -> None:
        if name == broken and metrics["epoch"] == 1:
            unexpected()

    ended: dict[str, Any] = {}
    made = made.reporting(report)
    with pytest.raises(Exception, match=r"unexpected|checkpoints"):
        train_siblings(made.tunings, made.shared, lambda tuning, end: ended.update({tuning.one.name: end}))
    assert set(ended) == {nan, *others}
    assert isinstance(ended[nan], RunError) and "not finite" in str(ended[nan])
    assert_equal(made, alone, others)
    # another time the one that broke goes on
    taken.unlink()
    made.reporting(lambda name, metrics: None).together()
    assert_equal(made, alone, [refused, broken])


def test_the_ancestry_is_asked_once_for_all(tmp_path: Path) -> None:
    class Counting(Ancestry):
        asked = 0

        def forward(self, images: Tensor) -> Tensor:
            Counting.asked += len(images)
            return super().forward(images)

    teacher = build(SPEC.replace(depth=4), seed=8)
    made, other = (
        dataclasses.replace(family(tmp_path / name, MEMBERS[:3], alpha=0.5), ancestry=Counting(teacher))
        for name in ("together", "alone")
    )
    made.together()
    # forward_flops of the teacher_flops column asks about one image each
    assert Counting.asked - len(made.tunings) == 2 * STEPS * BATCH
    rows = other.alone()
    assert_equal(made, other)
    assert len({row["teacher_flops"] for row in rows.values()}) == 1 and rows[made.names[0]]["teacher_flops"] > 0


def test_soft_labels_are_read_or_asked_once_for_all(tmp_path: Path) -> None:
    teacher = Ancestry(build(SPEC.replace(depth=4), seed=8))
    made, other = (
        dataclasses.replace(
            family(tmp_path / name, MEMBERS[:2], soft_labels=True, soft_labels_dtype="float32"), ancestry=teacher
        )
        for name in ("together", "alone")
    )
    asked = made.together()
    other.alone()
    assert len(Store(made.config.store).manifests("softlabels")) == 2
    again = dataclasses.replace(
        family(tmp_path / "together", MEMBERS[2:4], soft_labels=True, soft_labels_dtype="float32"), ancestry=teacher
    ).together()
    assert all(row["teacher_flops"] > 0 for row in asked.values() if isinstance(row, dict))
    assert all(row["teacher_flops"] == 0 for row in again.values() if isinstance(row, dict))
    first, second = (history(made, made.names[0]), history(other, made.names[0]))
    assert first == second


def test_the_seconds_of_siblings_are_shares_of_what_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 6.0, 6.0, 7.0, 8.0, 8.0, 9.0])
    used = iter([0.0, 2.0, 2.0, 2.5, 3.0, 3.0, 3.0])  # of the CPU
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr("ray_learngene.training.clock.cpu_seconds", lambda: next(used))
    one, other = (Clock(torch.device("cpu")) for _ in range(2))
    with shared_by([one, other]):
        pass  # from 0 to 6
    with one.running():
        assert one() == 3 + 1  # from 6 to 7
    # until 8
    assert (one(), other()) == (3 + 2, 3)
    assert (one.spent().tolist(), other.spent().tolist()) == ([5, 1 + 1], [3, 1])


def test_each_models_epochs_are_logged_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray_learngene.progress.LINE_SECONDS", 0)
    config, _, _ = inputs(tmp_path / "store")
    words = {"depths": "1,2", "arms": ("scratch",), "epochs": 2, "in_process": True}
    with caplog.at_level(logging.INFO, "ray_learngene"):
        sweep(config.model_copy(update=words))
    lines = [text for text in caplog.messages if text.startswith(f"sweep {config.name}: ") and "top-1" in text]
    for depth in (1, 2):
        for epoch in (1, 2):
            assert any(f" d{depth} s0 " in text and f" epoch {epoch}/2 " in text for text in lines)
