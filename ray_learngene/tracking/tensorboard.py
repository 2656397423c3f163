"""TensorBoard: one folder of event files a run, written by tensorboardX, which Ray brings along."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.tracking.base import Parameters, Reference, require, result_numbers


class TensorBoard:
    """Writes below a local folder. A continued run replaces the points from where it goes on."""

    def __init__(self, folder: str) -> None:
        self._module = require("tensorboardX", "tensorboard")
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--track tensorboard:{folder}: {error.strerror}; name a folder") from None
        self._parameters: dict[str, Parameters] = {}
        self._writers: dict[str, Any] = {}

    def start(self, run: str, parameters: Parameters) -> None:
        self._parameters[run] = parameters

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        writer = self._writer(run, step)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def finish(self, run: str, row: Mapping[str, Any], model: Reference) -> None:
        writer = self._writer(run, None)
        for name, value in result_numbers(row).items():
            writer.add_scalar(f"result/{name}", value, 0)
        writer.add_text("result", _table(row), 0)
        writer.add_text("model", _table(vars(model)), 0)
        self._close(run)

    def fail(self, run: str, error: str) -> None:
        self._writer(run, None).add_text("error", error, 0)
        self._close(run)

    def close(self) -> None:
        for run in list(self._writers):
            self._close(run)

    def _writer(self, run: str, step: int | None) -> Any:
        """Return the writer of a run; the first point says from where a continued run goes on."""
        if run not in self._writers:
            folder = self.folder / run
            purge = step if step and folder.exists() else None
            writer = self._writers[run] = self._module.SummaryWriter(
                str(folder),
                purge_step=purge,
                filename_suffix=f".{time.time_ns()}",  # else files of one second overwrite each other
            )
            writer.add_text("settings", _table(self._parameters.pop(run, {})), step or 0)
        return self._writers[run]

    def _close(self, run: str) -> None:
        self._writers.pop(run).close()


def _table(values: Mapping[str, Any]) -> str:
    """Markdown, as TensorBoard shows texts."""
    lines = (f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in values.items())
    return "\n".join(["| | |", "|---|---|", *lines])
