"""A training run from its last checkpoint to its artefact: what a cluster worker, a plain process and a trial share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import safetensors.torch
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from ray_learngene.config import TrainingConfig
from ray_learngene.data.images import Images
from ray_learngene.engine import Engine
from ray_learngene.errors import Interrupted, RunError
from ray_learngene.finite_guard import FiniteGuard, NonFiniteLoss
from ray_learngene.objectives import Objective
from ray_learngene.optimizers import create_schedule
from ray_learngene.progress import EMA_FILE, Progress, clear_disk_errors
from ray_learngene.scores import Scores, score
from ray_learngene.steps import Step, Stepper
from ray_learngene.stream import Answers, Coroutine, Need, Part, Phase, Stream, Supply, feed
from ray_learngene.worker import Worker

REPORT_SECONDS = 30  # between reports inside a long epoch
Trained = tuple[Progress, nn.Module | None]


class TrainingEngine(Engine, Protocol):
    """An engine that can write its state into a folder, which it makes, and read it back."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class Checkpoints(Protocol):
    """Where checkpoints of one run go. All are called by all workers at the same step.

    `save` lets `write` fill a folder that it names, and may return while what was written is being uploaded; `finish`
    waits for that. Both raise what went wrong with an earlier upload. `busy` says whether this worker's `save`
    would have to wait: then a checkpoint is left out, unless it is the last.
    """

    def latest(self) -> AbstractContextManager[Path | None]: ...
    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None: ...
    def finish(self) -> None: ...
    def busy(self) -> bool: ...


class Training:
    """One run, which goes on from its last checkpoint to its last step and scores the validation split every epoch.

    Args:
        checkpoint_due: Called with (step, steps per epoch, seconds since the last checkpoint); the last step always is.
        report: Called by the first worker with the metrics of every epoch.
        judge: Model whose decisions stand in for labels in evaluation.
        whole_evaluation: Every worker scores the whole split (partitioned weights need equal numbers of passes).
        evaluate_first: Score the untrained model as epoch 0.
        clock: The seconds that this run costs are taken from it.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        images: Images,
        config: TrainingConfig,
        *,
        worker: Worker,
        checkpoints: Checkpoints,
        checkpoint_due: Callable[[int, int, float], bool],
        report: Callable[[dict[str, Any]], None],
        judge: nn.Module | None = None,
        autocast: torch.dtype | None = None,
        whole_evaluation: bool = False,
        evaluate_first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.optimizer, self.images, self.config = engine, optimizer, images, config
        self.worker, self.checkpoints, self.checkpoint_due, self.report = worker, checkpoints, checkpoint_due, report
        self.judge, self.autocast, self.clock = judge, autocast, clock
        self.whole_evaluation, self.evaluate_first = whole_evaluation, evaluate_first
        self.steps_per_epoch = len(images.train) // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.ema = ModelEmaV3(engine.module, decay=config.ema) if config.ema else None
        self.progress = self._resume()
        self.guard = FiniteGuard(worker.device, worker.total if worker.world_size > 1 else None)
        self.take_step = Stepper(
            engine,
            objective,
            optimizer,
            create_schedule(optimizer, config, self.steps_per_epoch),
            self.total_steps,
            worker.device,
            self.guard,
            micro_batch=worker.micro_batch(config),
            seed=config.seed,
            rank=worker.rank,
            ema=self.ema,
        )
        self._resumed_at, self._seconds_before, self._began = self.progress.step, self.progress.seconds, clock()
        self._answers_before, self._answers_read = self.progress.answers_read, 0
        self._checkpointed = self._reported = time.monotonic()

    def run(self) -> Coroutine[Trained]:
        """The run as a coroutine that asks for its batches; see `stream`.

        Returns:
            The progress, and the weight average where one is kept.

        Raises:
            Interrupted: no batches were sent for a step; a checkpoint of the steps before it, if any, is uploaded.
            RunError: training cannot go on; all workers raise it at the same step.
        """
        progress = self.progress
        if (self.evaluate_first or self.total_steps == 0) and not progress.history:
            yield from self._score_epoch(Step(0, {}, 0.0))
        while progress.step < self.total_steps:
            micro_batches = yield Need(Phase.TRAIN, progress.step, Part.STEP)
            if micro_batches is None:
                if progress.step == 0:  # nothing to lose, and ZeRO has no moments to write yet
                    raise Interrupted(0, self.total_steps)
                self._share_statistics()
                self._checkpoint()
                yield Need(Phase.TRAIN, progress.step, Part.STEP)  # others write theirs while this one is uploaded
                self.checkpoints.finish()
                raise Interrupted(progress.step, self.total_steps)
            step = self.take_step(progress.step, micro_batches)
            progress.step = step.number
            self._answers_read += step.answers_read
            now = time.monotonic()
            if step.number % self.config.loss_check_steps == 0 or step.number % self.steps_per_epoch == 0:
                self.guard.check(step.number, step.lr)
            if step.number % self.steps_per_epoch == 0:
                yield from self._score_epoch(step)
            elif now - self._reported > REPORT_SECONDS:
                self._tell(self._metrics(step))
            since = now - self._checkpointed
            last = step.number == self.total_steps
            if self.checkpoint_due(step.number, self.steps_per_epoch, since) or last:
                self._share_statistics()  # also where no checkpoint follows: no number may depend on the store's speed
                if last or not self._uploading():
                    self._checkpoint()
        self._share_unreadable()
        self.checkpoints.finish()
        return progress, self.ema.module if self.ema is not None else None

    def _resume(self) -> Progress:
        with self.checkpoints.latest() as folder:
            if folder is None:
                return Progress()
            self.engine.load(folder)
            if self.ema is not None:
                self.ema.module.load_state_dict(safetensors.torch.load_file(folder / EMA_FILE))
            return Progress.read(folder)

    def _score_epoch(self, step: Step) -> Generator[Need, Supply, None]:
        """Score the model, and its average where one is kept, and add that to the history."""
        self._share_statistics()
        metrics = self._metrics(step)
        models = [self.engine.module, *([self.ema.module] if self.ema is not None else [])]
        scores = yield from self._score(models, step.number)
        if not math.isfinite(scores[0].mean_loss):  # a finite loss can still have had a gradient that was not
            raise NonFiniteLoss(
                f"the validation loss is not finite at step {step.number}: lower --lr or set --clip-grad 1"
            )
        metrics |= {"top1": scores[0].top1, "val_loss": scores[0].mean_loss}
        if self.ema is not None:
            metrics["ema_top1"] = scores[1].top1
        self.progress.history.append(metrics)
        self._tell(metrics)

    def _score(self, models: Sequence[nn.Module], step: int) -> Generator[Need, Supply, list[Scores]]:
        """Scores of several models, which see the same batches."""
        device = self.worker.device
        sums = torch.zeros(len(models), 3, dtype=torch.float64, device=device)
        for model in models:
            model.eval()
        need = Need(Phase.TRAIN, step, Part.VALIDATION)
        while batches := (yield need):
            for batch in batches:
                for row, model in zip(sums, models, strict=True):
                    row += score(model, batch, device=device, autocast=self.autocast, ancestry=self.judge)
            need = need._replace(number=need.number + 1)
        if not self.whole_evaluation:
            self.worker.total(sums)
        return [Scores(*row) for row in sums.tolist()]

    def _metrics(self, step: Step) -> dict[str, Any]:
        seconds = self.clock() - self._began
        return {
            "epoch": round(step.number / self.steps_per_epoch, 4),
            "step": step.number,
            **{name: loss.item() for name, loss in step.losses.items()},
            "lr": step.lr,
            "seconds": self._seconds_before + seconds,
            "images_per_second": (step.number - self._resumed_at) * self.config.batch_size / max(1e-9, seconds),
        }

    def _tell(self, metrics: dict[str, Any]) -> None:
        if self.worker.rank == 0:
            self.report({**metrics, "epochs": self.config.epochs, "total_steps": self.total_steps})
        self._reported = time.monotonic()

    def _checkpoint(self) -> None:
        progress = self.progress
        self.guard.check(progress.step, self.optimizer.param_groups[0]["lr"])
        self._share_unreadable()
        progress.seconds = self._seconds_before + self.clock() - self._began
        progress.answers_read = self._answers_before + self._total_answers_read()
        self.checkpoints.save(self._write, progress.history[-1] if progress.history else {})
        if self.config.checkpoint_uploads == "wait":
            self.checkpoints.finish()
        self._checkpointed = time.monotonic()

    def _uploading(self) -> bool:
        """Whether training would have to wait for an earlier checkpoint; the same on all workers."""
        busy = torch.tensor(float(self.checkpoints.busy()), device=self.worker.device)
        self.worker.total(busy)
        return bool(busy)

    def _write(self, folder: Path) -> None:
        error = None
        try:
            with clear_disk_errors(folder):
                self.engine.save(folder)  # first, as all workers take part in it
                if self.worker.rank == 0:
                    self.progress.write(folder)
                    if self.ema is not None:
                        safetensors.torch.save_file(self.ema.module.state_dict(), folder / EMA_FILE)
        except RunError as caught:
            error = caught
        self.worker.agree(error)

    def _total_answers_read(self) -> int:
        read = torch.tensor(float(self._answers_read), dtype=torch.float64, device=self.worker.device)
        self.worker.total(read)
        return round(read.item())

    def _share_statistics(self) -> None:
        """Average what is not a parameter, BatchNorm's statistics, over the workers: each has seen its own images."""
        for buffer in self.engine.module.buffers() if self.worker.world_size > 1 else ():
            if buffer.is_floating_point():
                self.worker.total(buffer)
                buffer /= self.worker.world_size

    def _share_unreadable(self) -> None:
        """Every worker has read its own images."""
        for reader in self.images.readers if self.images.unreadable == "skip" else ():
            seen = reader.unreadable.to(self.worker.device, torch.int32)
            self.worker.total(seen)
            reader.unreadable.copy_(seen > 0)
            self.progress.unreadable = sorted({*self.progress.unreadable, *reader.names()})


def train(
    training: Training, *, answers: Answers | None = None, stop: Callable[[int], bool] = lambda step: False
) -> Trained:
    """Train one model from a stream of its own.

    Args:
        answers: What the objective is given with every batch of images; None where it needs no more.
        stop: Called before every step, by all workers; where it says so, training is put down with a checkpoint.

    Raises:
        Interrupted: `stop` said so.
        RunError: see `Training.run`.
    """
    whole = training.whole_evaluation
    stream = Stream(training.images, training.config, training.worker, answers, whole_evaluation=whole)
    return feed(training.run(), stream, stop)
