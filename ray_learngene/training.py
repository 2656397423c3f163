"""A training run from its last checkpoint to its artefact: what a cluster worker, a plain process and a trial share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import safetensors.torch
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ray_learngene.config import OptimizationConfig
from ray_learngene.data.images import Images
from ray_learngene.engine import (
    Batch,
    Engine,
    FiniteGuard,
    NonFiniteLoss,
    Objective,
    Scores,
    create_schedule,
    evaluate,
    train_steps,
)
from ray_learngene.errors import Interrupted, RunError
from ray_learngene.progress import EMA_FILE, Progress, clear_disk_errors

REPORT_SECONDS = 30  # between reports inside a long epoch


class TrainingEngine(Engine, Protocol):
    """An engine that can write its state into a folder, which it makes, and read it back."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class Checkpoints(Protocol):
    """Where checkpoints of one run go. All are called by all workers at the same step.

    `save` lets `write` fill a folder that it names, and may return while what was written is being uploaded; `finish`
    waits for that. Both raise what went wrong with an earlier upload.
    """

    def latest(self) -> AbstractContextManager[Path | None]: ...
    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None: ...
    def finish(self) -> None: ...


class Answers(Protocol):
    """The ancestry model's answers beside a worker's batches; `read` counts images whose answer was not computed."""

    read: int

    def beside(self, loader: DataLoader[Any]) -> Iterable[Batch]: ...


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a run; `total` adds tensors up over all of them in place."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    total: Callable[[Tensor], Any] = lambda tensor: None

    def micro_batch(self, config: OptimizationConfig) -> float:
        """Images of a micro-batch, on average over all workers."""
        return config.batch_size / (self.world_size * config.accumulation)

    def agree(self, error: RunError | None) -> None:
        """Raise on all workers what any of them has met."""
        failed = torch.tensor(float(error is not None), device=self.device)
        self.total(failed)
        if failed:
            raise error or RunError("another worker cannot go on; its error is told by the first one")


def train(
    engine: TrainingEngine,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    images: Images,
    config: OptimizationConfig,
    *,
    worker: Worker,
    checkpoints: Checkpoints,
    checkpoint_due: Callable[[int, int, float], bool],
    report: Callable[[dict[str, Any]], None],
    answers: Answers | None = None,
    stop: Callable[[int], bool] = lambda step: False,
    judge: nn.Module | None = None,
    autocast: torch.dtype | None = None,
    whole_evaluation: bool = False,
    evaluate_first: bool = False,
) -> tuple[Progress, nn.Module | None]:
    """Continue from the last checkpoint to the last step, scoring the validation split after every epoch.

    Args:
        checkpoint_due: Called with (step, steps per epoch, seconds since the last checkpoint); the last step always is.
        report: Called by the first worker with the metrics of every epoch.
        answers: What the objective is given with every batch of images; None where it needs no more.
        stop: Called after every step, by all workers; where it says so, training is put down with a checkpoint.
        judge: Model whose decisions stand in for labels in evaluation.
        whole_evaluation: Every worker scores the whole split (partitioned weights need equal numbers of passes).
        evaluate_first: Score the untrained model as epoch 0.

    Returns:
        The progress, and the weight average where one is kept.

    Raises:
        Interrupted: `stop` said so.
        RunError: training cannot go on; all workers raise it at the same step.
    """
    progress = Progress()
    ema = ModelEmaV3(engine.module, decay=config.ema) if config.ema else None
    with checkpoints.latest() as folder:
        if folder is not None:
            progress = Progress.read(folder)
            engine.load(folder)
            if ema is not None:
                ema.module.load_state_dict(safetensors.torch.load_file(folder / EMA_FILE))
    loader = images.training_batches(config, rank=worker.rank, world_size=worker.world_size, start_step=progress.step)
    batches: Iterable[Batch] = loader if answers is None else answers.beside(loader)
    answers_before = progress.answers_read
    steps_per_epoch = len(images.train) // config.batch_size
    total_steps = config.epochs * steps_per_epoch
    validation = images.validation_batches(
        max(1, int(worker.micro_batch(config))),
        rank=0 if whole_evaluation else worker.rank,
        world_size=1 if whole_evaluation else worker.world_size,
    )

    def score(model: nn.Module) -> Scores:
        scores = evaluate(model, validation, device=worker.device, autocast=autocast, ancestry=judge)
        if whole_evaluation:
            return scores
        sums = torch.tensor([scores.correct, scores.loss, scores.images], dtype=torch.float64, device=worker.device)
        worker.total(sums)
        return Scores(*sums.tolist())

    def share_statistics() -> None:
        """Average what is not a parameter, BatchNorm's statistics, over the workers: each has seen its own images."""
        for buffer in engine.module.buffers() if worker.world_size > 1 else ():
            if buffer.is_floating_point():
                worker.total(buffer)
                buffer /= worker.world_size

    def answers_read() -> int:
        read = torch.tensor(float(answers.read if answers else 0), dtype=torch.float64, device=worker.device)
        worker.total(read)
        return answers_before + round(read.item())

    def share_unreadable() -> None:
        """Every worker has read its own images."""
        for reader in images.readers if images.unreadable == "skip" else ():
            seen = reader.unreadable.to(worker.device, torch.int32)
            worker.total(seen)
            reader.unreadable.copy_(seen > 0)
            progress.unreadable = sorted({*progress.unreadable, *reader.names()})

    def write(folder: Path) -> None:
        error = None
        try:
            with clear_disk_errors(folder):
                engine.save(folder)  # first, as all workers take part in it
                if worker.rank == 0:
                    progress.write(folder)
                    if ema is not None:
                        safetensors.torch.save_file(ema.module.state_dict(), folder / EMA_FILE)
        except RunError as caught:
            error = caught
        worker.agree(error)

    def checkpoint() -> None:
        guard.check(progress.step, optimizer.param_groups[0]["lr"])
        share_statistics()
        share_unreadable()
        progress.seconds = seconds_before + time.monotonic() - began
        progress.answers_read = answers_read()
        checkpoints.save(write, progress.history[-1] if progress.history else {})

    guard = FiniteGuard(worker.device, worker.total)
    schedule = create_schedule(optimizer, config, steps_per_epoch)
    resumed_at, began = progress.step, time.monotonic()
    seconds_before, checkpointed, reported = progress.seconds, began, began

    def metrics_at(step: int, losses: dict[str, Tensor], lr: float) -> dict[str, Any]:
        seconds = time.monotonic() - began
        return {
            "epoch": round(step / steps_per_epoch, 4),
            "step": step,
            **{name: loss.item() for name, loss in losses.items()},
            "lr": lr,
            "seconds": seconds_before + seconds,
            "images_per_second": (step - resumed_at) * config.batch_size / max(1e-9, seconds),
        }

    def tell(metrics: dict[str, Any]) -> None:
        nonlocal reported
        if worker.rank == 0:
            report({**metrics, "epochs": config.epochs, "total_steps": total_steps})
        reported = time.monotonic()

    def record(step: int, losses: dict[str, Tensor], lr: float) -> None:
        share_statistics()
        metrics = metrics_at(step, losses, lr)
        scores = score(engine.module)
        if not math.isfinite(scores.mean_loss):  # a finite loss can still have had a gradient that was not
            raise NonFiniteLoss(f"the validation loss is not finite at step {step}: lower --lr or set --clip-grad 1")
        metrics |= {"top1": scores.top1, "val_loss": scores.mean_loss}
        if ema is not None:
            metrics["ema_top1"] = score(ema.module).top1
        progress.history.append(metrics)
        tell(metrics)

    if (evaluate_first or total_steps == 0) and not progress.history:
        record(0, {}, 0.0)
    for step in train_steps(
        engine,
        batches,
        objective,
        optimizer,
        schedule,
        total_steps=total_steps,
        start_step=progress.step,
        accumulation=config.accumulation,
        micro_batch=worker.micro_batch(config),
        device=worker.device,
        seed=config.seed,
        rank=worker.rank,
        ema=ema,
        guard=guard,
    ):
        progress.step = step.number
        last = step.number == total_steps
        now = time.monotonic()
        if step.number % steps_per_epoch == 0:
            guard.check(step.number, step.lr)
            record(step.number, step.losses, step.lr)
        elif now - reported > REPORT_SECONDS:
            tell(metrics_at(step.number, step.losses, step.lr))
        if stop(step.number) and not last:
            checkpoint()
            checkpoints.finish()
            raise Interrupted(step.number, total_steps)
        if last or checkpoint_due(step.number, steps_per_epoch, now - checkpointed):
            checkpoint()
            checkpointed = time.monotonic()
    share_unreadable()
    checkpoints.finish()
    return progress, ema.module if ema is not None else None
