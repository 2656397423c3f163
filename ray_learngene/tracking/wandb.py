"""Weights & Biases: one run of a project a model, found again by an id that follows from its name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.tracking.base import Parameters, Reference, require

# Of the driver's machine: models may train elsewhere, and the list of packages alone takes 0.1 s a run.
_COLLECTS_NOTHING: dict[str, Any] = {
    **{"disable_git": True, "x_disable_meta": True, "x_disable_machine_info": True},
    **{"x_disable_stats": True, "x_save_requirements": False, "host": ""},
}


class WandB:
    """Writes to a project, PROJECT or ENTITY/PROJECT; offline with WANDB_MODE=offline."""

    def __init__(self, project: str) -> None:
        self._module = require("wandb", "wandb")
        entity, _, self.project = project.rpartition("/")
        self.entity = entity or None
        settings = self._module.setup(self._module.Settings(silent=True)).settings
        if settings.mode == "online" and not self._module.login(prompt=False, verify=False):
            raise UserError(
                f"--track wandb:{project}: W&B knows no account here: run `wandb login`, set WANDB_API_KEY, "
                "or WANDB_MODE=offline"
            )
        self._runs: dict[str, Any] = {}

    def start(self, run: str, parameters: Parameters) -> None:
        self._runs[run] = opened = self._module.init(
            project=self.project,
            entity=self.entity,
            id=hashlib.sha256(run.encode()).hexdigest()[:16],
            name=run,
            group=run.split("/")[1],
            config=dict(parameters),
            resume="allow",
            reinit="create_new",  # siblings are followed at the same time
            settings=self._module.Settings(silent=True, console="off", save_code=False, **_COLLECTS_NOTHING),
        )
        opened.define_metric("step")
        opened.define_metric("*", step_metric="step")  # W&B drops points whose own step is not the highest so far

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        self._runs[run].log({**numbers, "step": step})

    def finish(self, run: str, row: Mapping[str, Any], model: Reference) -> None:
        summary = self._runs[run].summary
        summary["result"] = {name: value for name, value in row.items() if isinstance(value, str | int | float)}
        summary["model"] = dict(vars(model))
        self._runs.pop(run).finish()

    def fail(self, run: str, error: str) -> None:
        self._runs[run].summary["error"] = error
        self._runs.pop(run).finish(exit_code=1)

    def close(self) -> None:
        for run in list(self._runs):
            self._runs.pop(run).finish(exit_code=1)
