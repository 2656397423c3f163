"""MLflow: one run of an experiment a model, found again by a tag; the model in the registry, by reference."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ray_learngene.tracking.base import Parameters, Reference, require, result_numbers

EXPERIMENT = "ray_learngene"  # MLflow's own variable names another
_TAG = "learngene.run"
_LONGEST, _AT_ONCE = 500, 100  # of parameters, as every version of MLflow takes them
_WRITING_SECONDS, _POINTS = 30.0, 700  # a run is written at most so often, with so many points (1,000 of all kinds)


class MLflow:
    """Writes to a tracking server or a database."""

    def __init__(self, uri: str) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its 7 take minutes
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports its use to its makers
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._mlflow = require("mlflow", "mlflow")
        self.uri = uri
        self._client: Any = None
        self._experiment, self._is_new = "", False
        self._ids: dict[str, str] = {}
        self._settings: dict[str, list[Any]] = {}  # of a run, not written yet
        self._points: dict[str, list[Any]] = {}
        self._due: dict[str, float] = {}  # when both are written
        self._registered: set[str] = set()

    def start(self, run: str, parameters: Parameters) -> None:
        if self._client is None:
            self._open()
        one = f"tags.`{_TAG}` = '{run}'"
        found = [] if self._is_new else self._client.search_runs([self._experiment], one, max_results=1)
        if found:
            self._ids[run], known = found[0].info.run_id, found[0].data.params
            self._client.update_run(self._ids[run], status="RUNNING")
        else:
            created = self._client.create_run(self._experiment, tags={_TAG: run}, run_name=run)
            self._ids[run], known = created.info.run_id, {}
        new = {name: value for name, value in parameters.items() if name not in known}  # a parameter cannot change
        self._settings[run] = [self._mlflow.entities.Param(name, value[:_LONGEST]) for name, value in new.items()]
        self._points[run], self._due[run] = [], time.monotonic() + _WRITING_SECONDS

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        metric, now = self._mlflow.entities.Metric, int(1000 * time.time())
        if len(self._points[run]) + len(numbers) > _POINTS:
            self._write(run)
        self._points[run] += [metric(name, value, now, step) for name, value in numbers.items()]
        if time.monotonic() >= self._due[run]:
            self._write(run)

    def finish(self, run: str, row: Mapping[str, Any], model: Reference) -> None:
        self._due[run] = math.inf
        self.log(run, 0, {f"result.{name}": value for name, value in result_numbers(row).items()})
        texts = {f"result.{name}": value for name, value in row.items() if isinstance(value, str)}
        reference = {f"learngene.model.{name}": value for name, value in vars(model).items()}
        self._end(run, "FINISHED", {**texts, **reference, "learngene.model.registered": self._register(run, model)})

    def fail(self, run: str, error: str) -> None:
        self._end(run, "FAILED", {"learngene.error": error})

    def close(self) -> None:
        for run in list(self._ids):
            self._end(run, "KILLED")

    def _write(self, run: str, tags: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write the settings and points that are pending: a call takes as long for many as for one."""
        texts = [self._mlflow.entities.RunTag(name, value[:_LONGEST]) for name, value in tags.items()]
        points, settings = self._points[run], self._settings[run]
        while points or texts or settings:
            self._client.log_batch(self._ids[run], metrics=points, params=settings[:_AT_ONCE], tags=texts)
            points, texts, settings = [], [], settings[_AT_ONCE:]
        self._points[run], self._settings[run], self._due[run] = [], [], time.monotonic() + _WRITING_SECONDS

    def _end(self, run: str, status: str, tags: Mapping[str, str] = MappingProxyType({})) -> None:
        self._write(run, tags)
        del self._points[run], self._settings[run], self._due[run]
        self._client.set_terminated(self._ids.pop(run), status)

    def _open(self) -> None:
        client = self._mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = client.get_experiment_by_name(name)
        self._experiment, self._is_new = found.experiment_id if found else client.create_experiment(name), not found
        client.search_registered_models(max_results=1)  # opens the registry now, not with the first result
        self._client = client

    def _register(self, run: str, model: Reference) -> str:
        """Make a version of the registered model of the run's sweep, or of the learngene, and return how it is called.

        Its files stay where they are.
        """
        name = ".".join(run.split("/")[:2])
        if name not in self._registered and not self._client.search_registered_models(
            f"name = '{name}'", max_results=1
        ):
            self._client.create_registered_model(name)
        self._registered.add(name)
        version = self._client.create_model_version(
            name, model.uri, self._ids[run], tags={_TAG: run, "version": model.version, "sha256": model.sha256}
        )
        return f"{name}/{version.version}"
