"""Uploads of checkpoints never hold up training, and what goes wrong with them is told."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_learngene.config import AugmentationConfig, DataConfig, TrainingConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.errors import UserError
from ray_learngene.models.build import build
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.store import Store
from ray_learngene.training.batches import Batches
from ray_learngene.training.checkpoints import BackgroundCheckpoints, Checkpoints
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.lockstep import train
from ray_learngene.training.objectives import LabelObjective
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.trainer import Trainer
from ray_learngene.training.world import World

CPU = torch.device("cpu")
ALONE = World(CPU)
CONFIG = TrainingConfig(epochs=2, batch_size=256, warmup_epochs=0, drop_path=0)
SECONDS = 600  # an upload waits for its test at most so long


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, to see that nothing is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Held:
    """A store whose uploads wait until they are released."""

    def __init__(self) -> None:
        self.started, self.released = threading.Event(), threading.Event()
        self.stored: list[str] = []

    def latest(self) -> AbstractContextManager[Path | None]:
        return nullcontext()

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        folder = Path(tempfile.mkdtemp())
        write(folder)
        self.started.set()
        assert self.released.wait(SECONDS)
        self.stored += [path.name for path in folder.iterdir()]
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def file_named(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(name)

    return write


def test_the_newest_takes_the_place_of_the_waiting_one(temporary: Path) -> None:
    held = Held()
    with BackgroundCheckpoints(held) as checkpoints:
        checkpoints.save(file_named("first"), {})
        assert held.started.wait(SECONDS)
        checkpoints.save(file_named("second"), {})
        checkpoints.save(file_named("third"), {})
        assert held.stored == []
        held.released.set()
        checkpoints.finish()
        assert held.stored == ["first", "third"]
    assert list(temporary.iterdir()) == []


def test_a_checkpoint_that_waits_behind_one_that_is_refused_leaves_nothing(temporary: Path) -> None:
    held = Held()

    def refuse(write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        held.started.set()
        assert held.released.wait(SECONDS)
        raise UserError("no space")

    held.save = refuse  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no space"), BackgroundCheckpoints(held) as checkpoints:
        checkpoints.save(file_named("first"), {})
        assert held.started.wait(SECONDS)
        checkpoints.save(file_named("second"), {})
        held.released.set()
        checkpoints.finish()
    assert list(temporary.iterdir()) == []


def run(
    checkpoints: Checkpoints,
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
    due: Callable[[int], bool] = lambda step: True,
    world: World = ALONE,
    **changes: Any,
) -> None:
    sets = open_image_sets(DataConfig(data="digits"))
    preprocessing = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")
    model = build(PRESETS["nano"].replace(depth=1), seed=0)
    optimizer = create_optimizer(model, CONFIG)
    images = ImagePipeline(sets.train, sets.val, preprocessing, AugmentationConfig())
    config = CONFIG.model_copy(update=changes)
    trainer = Trainer(
        TorchEngine(model, optimizer),
        optimizer,
        LabelObjective(),
        images,
        config,
        world=world,
        checkpoints=checkpoints,
        checkpoint_due=lambda step, steps_per_epoch, seconds: due(step),
        report=report,
    )
    train([trainer], Batches(images, config, world))


def test_training_goes_on_while_a_checkpoint_is_uploaded() -> None:
    held = Held()

    def report(metrics: dict[str, Any]) -> None:
        if metrics["step"] == metrics["total_steps"]:
            assert held.started.is_set() and held.stored == [], "every step was taken during the first upload"
            held.released.set()

    with BackgroundCheckpoints(held) as checkpoints:
        run(checkpoints, report)
    # the first, the last, and the one before it where its upload began before the last was written
    assert held.stored.count("progress.json") in (2, 3)


class Slow:
    """Checkpoints of a cluster worker whose first upload takes until step 7 and would keep `save` waiting."""

    def __init__(self, uploads: bool = True) -> None:
        self.uploads = uploads
        self.step = 0
        self.calls: list[str] = []

    def due(self, step: int) -> bool:
        self.step = step
        return step in (2, 4, 8)

    def latest(self) -> AbstractContextManager[Path | None]:
        return nullcontext()

    def busy(self) -> bool:
        return self.uploads and bool(self.calls) and self.step < 7

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        self.calls.append(f"save {self.step}")

    def finish(self) -> None:
        self.calls.append("finish")


def test_a_checkpoint_is_left_out_rather_than_waited_for() -> None:
    slow = Slow()
    run(slow, due=slow.due)
    assert slow.calls == ["save 2", "save 8", "save 10", "finish"]


def test_training_waits_for_every_checkpoint_where_that_is_asked_for() -> None:
    calm = Slow(uploads=False)
    run(calm, due=calm.due, checkpoint_uploads="wait")
    assert calm.calls == ["save 2", "finish", "save 4", "finish", "save 8", "finish", "save 10", "finish", "finish"]


def test_workers_agree_on_what_is_left_out() -> None:
    first, second = Slow(), Slow(uploads=False)
    together, sent = threading.Barrier(2, timeout=SECONDS), [torch.empty(0), torch.empty(0)]

    def total(rank: int, tensor: torch.Tensor) -> None:
        sent[rank] = tensor.clone()
        together.wait()
        tensor.copy_(sent[0] + sent[1])
        together.wait()

    def train_one(slow: Slow, rank: int) -> None:
        run(slow, due=slow.due, world=World(CPU, rank, 2, partial(total, rank)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train_one, (first, second), (0, 1)))
    assert first.calls == second.calls == ["save 2", "save 8", "save 10", "finish"]


class Refused(StoreCheckpoints):
    """A store that takes one checkpoint and refuses the next."""

    taken = 0

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        self.taken += 1
        if self.taken > 1:
            raise UserError("403: forbidden")
        super().save(write, metrics)


def test_a_refused_upload_ends_training_and_the_last_good_checkpoint_stays(tmp_path: Path, temporary: Path) -> None:
    stored = Refused(Store(str(tmp_path / "store")), "run/state")
    with pytest.raises(UserError, match="403: forbidden"), BackgroundCheckpoints(stored) as checkpoints:
        run(checkpoints)
    with stored.latest() as folder:
        assert folder is not None and (folder / "progress.json").exists()
    assert list(temporary.iterdir()) == []
