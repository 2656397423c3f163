"""The trainer of one model: its steps, scores and checkpoints. `lockstep.train` runs it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import safetensors.torch
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from ray_learngene.config import TrainingConfig
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.errors import Interrupted, RunError
from ray_learngene.training.best import Best
from ray_learngene.training.checkpoints import EMA_FILE, Checkpoints, Progress, clear_disk_errors
from ray_learngene.training.clock import Clock
from ray_learngene.training.engine import Engine
from ray_learngene.training.evaluation import LabelScorer, Scorer
from ray_learngene.training.finite_guard import FiniteGuard, NonFiniteLoss
from ray_learngene.training.objectives import Objective
from ray_learngene.training.optimizers import create_schedule, current_rate
from ray_learngene.training.step import Batch, Step, Stepper
from ray_learngene.training.world import World

REPORT_SECONDS = 30  # interval of reports within a long epoch
TICK_SECONDS = 1  # interval of reports of the step alone, which cost no synchronisation with a device


class TrainingEngine(Engine, Protocol):
    """An engine that can save its state into a folder, which it creates, and load it."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class Trainer:
    """Trains one model from its last checkpoint to its last step; scores the validation split every epoch.

    Args:
        checkpoint_due: Called with (step, steps per epoch, seconds since the last checkpoint). A checkpoint always
            follows the last step.
        report: Called on rank 0 with the metrics of every epoch, and about every second with the step alone. The first
            report of a continued run has `continued`.
        scorer: Scores the validation split; by default top-1 and cross-entropy with the labels.
        whole_evaluation: Every rank scores the whole split (partitioned weights need equal numbers of passes).
        evaluate_first: Score the untrained model as epoch 0; so does `publish` "best".
        clock: Measures the seconds of this run.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        images: ImagePipeline,
        config: TrainingConfig,
        *,
        world: World,
        checkpoints: Checkpoints,
        checkpoint_due: Callable[[int, int, float], bool],
        report: Callable[[dict[str, Any]], None],
        scorer: Scorer | None = None,
        autocast: torch.dtype | None = None,
        whole_evaluation: bool = False,
        evaluate_first: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.engine, self.optimizer, self.images, self.config = engine, optimizer, images, config
        self.world, self.checkpoints, self.checkpoint_due, self.report = world, checkpoints, checkpoint_due, report
        self.scorer, self.clock = scorer or LabelScorer(world.device, autocast), clock or Clock(world.device)
        self.whole_evaluation = whole_evaluation
        self.steps_per_epoch = len(images.train) // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.ema = ModelEmaV3(engine.module, decay=config.ema) if config.ema else None
        self.best: list[Best] = []  # of every scored model, if the best epoch is published
        self.progress = self._resume()
        self.guard = FiniteGuard(world.device, world.all_reduce if world.world_size > 1 else None)
        self.stepper = Stepper(
            engine,
            objective,
            optimizer,
            create_schedule(optimizer, config, self.steps_per_epoch),
            self.total_steps,
            world.device,
            self.guard,
            micro_batch=world.micro_batch(config),
            seed=config.seed,
            rank=world.rank,
            ema=self.ema,
        )
        self._before, self._began, self._answers_read = replace(self.progress), self.clock.spent(), 0
        self._load, self._loads = os.getloadavg()[0], 1  # their sum, and how many
        self._checkpointed = self._reported = self._ticked = time.monotonic()
        self._unscored: tuple[Step, dict[str, Any]] | None = None
        if (evaluate_first or self.best or self.total_steps == 0) and not self.progress.history:
            self._begin_score(Step(0, {}, 0.0))
        if self.step:
            self._tick(continued=True)

    @property
    def step(self) -> int:
        """Number of optimizer steps so far."""
        return self.progress.step

    @property
    def score_due(self) -> bool:
        """Whether the validation split must be scored before the next step."""
        return self._unscored is not None

    def take_step(self, micro_batches: Iterable[Batch]) -> None:
        """Take the next step.

        Raises:
            RunError: training cannot continue; all ranks raise it at the same step.
        """
        step = self.stepper(self.step, micro_batches)
        self.progress.step = step.number
        self._answers_read += step.answers_read
        epoch_ends = step.number % self.steps_per_epoch == 0
        if step.number % self.config.loss_check_steps == 0 or epoch_ends:
            self.guard.check(step.number, step.lr)
        if epoch_ends:
            self._begin_score(step)
        elif time.monotonic() - self._reported > REPORT_SECONDS:
            self._tell(self._metrics(step))
        elif time.monotonic() - self._ticked > TICK_SECONDS:
            self._tick()

    def score(self, batch: Batch, split: int) -> None:
        """Add a batch to the scores of the model and, with `ema`, of its average; `split` as in `Batches.scored`."""
        for row, model in zip(self._sums[split], self._scored_models(), strict=True):
            row += self.scorer.score(model, batch)

    def end_score(self) -> None:
        """Report the scores and add them to the history.

        Raises:
            NonFiniteLoss: the validation loss is not finite.
        """
        assert self._unscored is not None
        step, metrics = self._unscored
        self._unscored = None
        if not self.whole_evaluation:
            self.world.all_reduce(self._sums)
        reported, *choice = [[self.scorer.metrics(row) for row in split] for split in self._sums.tolist()]
        scores, *averages = reported
        if not math.isfinite(scores["val_loss"]):  # a finite training loss can have a non-finite gradient
            raise NonFiniteLoss(
                f"the validation loss is not finite at step {step.number}: lower --lr or set --clip-grad 1"
            )
        metrics |= scores
        for average in averages:
            metrics |= {f"ema_{name}": value for name, value in average.items() if name != "val_loss"}
        for held_out in choice:
            metrics |= {f"held_out_{name}": value for name, value in held_out[0].items() if name != "val_loss"}
            for best, model, one in zip(self.best, self._scored_models(), held_out, strict=True):
                best.offer(model, one, len(self.progress.history))
        self.progress.history.append(metrics)
        self._tell(metrics)

    def load_published(self) -> dict[str, Any]:
        """Give the models the weights to publish, and return their entry of the history."""
        history = self.progress.history
        if not self.best:
            return dict(history[-1])
        entries = []
        for best, model in zip(self.best, self._scored_models(), strict=True):
            assert best.index is not None
            best.load_into(model)
            entries.append(history[best.index])
        return {**entries[0], **{name: value for name, value in entries[-1].items() if name.startswith("ema_")}}

    def save_if_due(self) -> None:
        """Write a checkpoint after the last step, or if one is due and the previous one is uploaded."""
        since = time.monotonic() - self._checkpointed
        last = self.step == self.total_steps
        if self.checkpoint_due(self.step, self.steps_per_epoch, since) or last:
            self._share_statistics()  # even if no checkpoint follows: results must not depend on the store's speed
            if last or not self._uploading():
                self._checkpoint()

    def begin_interrupt(self) -> None:
        """Write a checkpoint, because no further step follows."""
        if self.step:  # at step 0 there is no progress to save, and ZeRO has no moments yet
            self._share_statistics()
            self._checkpoint()

    def interrupt(self) -> NoReturn:
        """Wait until the checkpoint is uploaded.

        Raises:
            Interrupted: always.
        """
        if self.step:
            self.checkpoints.finish()
        raise Interrupted(self.step, self.total_steps)

    def finish(self) -> None:
        """Wait until the last checkpoint is uploaded."""
        self._share_unreadable()
        self.checkpoints.finish()

    def _resume(self) -> Progress:
        with self.checkpoints.latest() as folder:
            models = range(0 if self.images.choice is None else len(self._scored_models()))
            if folder is None:
                self.best = [Best(number) for number in models]
                return Progress()
            self.engine.load(folder)
            if self.ema is not None:
                self.ema.module.load_state_dict(safetensors.torch.load_file(folder / EMA_FILE))
            progress = Progress.read(folder)
            self.best = [Best(number, progress.best[number], folder) for number in models]
            return progress

    def _begin_score(self, step: Step) -> None:
        self._share_statistics()
        self._unscored = step, self._metrics(step)
        models = self._scored_models()
        splits = 1 + (self.images.choice is not None)
        self._sums = torch.zeros(splits, len(models), self.scorer.width, dtype=torch.float64, device=self.world.device)
        for model in models:
            model.eval()
        self.scorer.begin(models)

    def release(self) -> None:
        """Free the weights, the moments and the best weights. It has ended, and cannot train on."""
        for name in ("engine", "optimizer", "ema", "best", "stepper", "scorer"):
            vars(self).pop(name, None)

    def _scored_models(self) -> list[nn.Module]:
        return [self.engine.module, *([self.ema.module] if self.ema is not None else [])]

    def _metrics(self, step: Step) -> dict[str, Any]:
        seconds = float(self.clock.spent()[0] - self._began[0])
        return {
            "epoch": round(step.number / self.steps_per_epoch, 4),
            "step": step.number,
            **{name: loss.item() for name, loss in step.losses.items()},
            "lr": step.lr,
            "seconds": self._before.seconds + seconds,
            "images_per_second": (step.number - self._before.step) * self.config.batch_size / max(1e-9, seconds),
        }

    def _tell(self, metrics: dict[str, Any]) -> None:
        self._reported = time.monotonic()
        self._tick(**metrics)

    def _tick(self, **more: Any) -> None:
        if self.world.rank == 0:
            epoch = round(self.step / self.steps_per_epoch, 4)
            of = {"epochs": self.config.epochs, "total_steps": self.total_steps}
            self.report({"epoch": epoch, "step": self.step, **more, **of})
        self._load, self._loads = self._load + os.getloadavg()[0], self._loads + 1
        self._ticked = time.monotonic()

    def _checkpoint(self) -> None:
        progress = self.progress
        self.guard.check(progress.step, current_rate(self.optimizer))
        self._share_unreadable()
        self._add_costs()
        metrics = progress.history[-1] if progress.history else {}
        self.checkpoints.save(self._write, {**metrics, "step": progress.step})
        if self.config.checkpoint_uploads == "wait":
            self.checkpoints.finish()
        self._checkpointed = time.monotonic()

    def _uploading(self) -> bool:
        """Check whether any rank would have to wait for an earlier checkpoint; the same result on all ranks."""
        busy = torch.tensor(float(self.checkpoints.busy()), device=self.world.device)
        self.world.all_reduce(busy)
        return bool(busy)

    def _write(self, folder: Path) -> None:
        error = None
        try:
            with clear_disk_errors(folder):
                self.engine.save(folder)  # first, because all ranks take part in it
                if self.world.rank == 0:
                    self.progress.best = [best.record() for best in self.best]
                    self.progress.write(folder)
                    for best in self.best:
                        best.write(folder)
                    if self.ema is not None:
                        safetensors.torch.save_file(self.ema.module.state_dict(), folder / EMA_FILE)
        except RunError as caught:
            error = caught
        self.world.agree(error)

    def _add_costs(self) -> None:
        """Bring the costs in the progress up to date, with those of all ranks."""
        seconds, of_device = (self.clock.spent() - self._began).tolist()
        mean_load = self._load / self._loads / self.world.world_size
        own = torch.tensor([self._answers_read, of_device, mean_load], dtype=torch.float64, device=self.world.device)
        self.world.all_reduce(own)
        answers, of_device, load = own.tolist()
        progress, before = self.progress, self._before
        progress.answers_read = before.answers_read + round(answers)
        progress.seconds = before.seconds + seconds
        if before.device_seconds is not None and before.load_seconds is not None:
            progress.device_seconds = before.device_seconds + of_device
            progress.load_seconds = before.load_seconds + load * seconds

    def _share_statistics(self) -> None:
        """Average floating-point buffers (BatchNorm's statistics) over ranks, which have seen different images."""
        for model in self._scored_models() if self.world.world_size > 1 else ():
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    self.world.all_reduce(buffer)
                    buffer /= self.world.world_size

    def _share_unreadable(self) -> None:
        """Merge the unreadable images of all ranks, which have read different images."""
        for reader in self.images.readers if self.images.unreadable == "skip" else ():
            seen = reader.unreadable.to(self.world.device, torch.int32)
            self.world.all_reduce(seen)
            reader.unreadable.copy_(seen > 0)
            self.progress.unreadable = sorted({*self.progress.unreadable, *reader.names()})
