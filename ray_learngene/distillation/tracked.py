"""What follows a distillation: its progress in the log, and a run of each of its trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from ray_learngene.distillation.task import Task
from ray_learngene.errors import Interrupted
from ray_learngene.progress import TrainingProgress
from ray_learngene.store.manifest import Manifest
from ray_learngene.tracking.base import curve_points
from ray_learngene.tracking.trackers import Trackers, parameters_of, reference_of, run_of


class TrackedRun:
    """Is called with the metrics of a run; a run that ends by an error has failed, for its trackers."""

    def __init__(self, trackers: Trackers, task: Task) -> None:
        self.trackers, self.task = trackers, task
        self.name = run_of(task.kind, task.config.name)
        self._progress = TrainingProgress(task.config.name)

    def __enter__(self) -> Self:
        self.trackers.start(self.name, parameters_of(self.task.config))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, Interrupted):  # that one is continued
            self.trackers.fail(self.name, str(error))

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        self._progress(metrics)
        self.trackers.log(self.name, metrics["step"], curve_points(metrics))

    def finish(self, manifest: Manifest) -> None:
        """The artefact is published."""
        row = {**manifest.metadata["metrics"], **manifest.metadata["cost"]}
        reference = reference_of(self.task.store, manifest)
        self.trackers.finish(self.name, row, lambda: reference)
