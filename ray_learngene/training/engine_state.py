"""The engine state in a checkpoint: whole fp32 weights and the state of the optimizer.

The file does not depend on the number of ranks or the ZeRO stage, so a run can resume with others.
The format is safetensors, no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ray_learngene.errors import Diverged, RunError

STATE_FILE = "engine.safetensors"


@dataclass
class EngineState:
    """Weights and the state of the optimizer.

    Attributes:
        model: The module's `state_dict`.
        moments: Tensors and numbers, such as AdamW's `step`, `exp_avg` and `exp_avg_sq`, by the parameter's position
            in the optimizer's groups. Parameters that have had no gradient yet are missing.
        counters: Step counts that the optimizer holds for a whole group, by the group's position.
    """

    model: dict[str, Tensor]
    moments: dict[int, dict[str, Any]]
    counters: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, optimizer: torch.optim.Optimizer) -> EngineState:
        """Collect the state of a module and its optimizer."""
        state = optimizer.state_dict()
        return cls(module.state_dict(), state["state"], counters_of(state["param_groups"]))

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the optimizer's part; its settings stay those of this run."""
        groups = optimizer.state_dict()["param_groups"]
        groups = [{**group, **self.counters.get(index, {})} for index, group in enumerate(groups)]
        optimizer.load_state_dict({"state": self.moments, "param_groups": groups})


def counters_of(groups: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return what optimizers count for a whole group: `step`, or Lookahead's `lookahead_step`."""
    found = {
        index: {name: value for name, value in group.items() if name.endswith("step")}
        for index, group in enumerate(groups)
    }
    return {index: counters for index, counters in found.items() if counters}


class NonFiniteWeights(Diverged):
    """A step made weights NaN or infinite although its loss was finite."""


def write_state(folder: Path, state: EngineState) -> None:
    """Write a state into a folder; create the folder if it is missing.

    Raises:
        NonFiniteWeights: a weight is NaN or infinite, so training could not continue from this state.
    """
    if not torch.stack([torch.isfinite(tensor).all() for tensor in state.model.values()]).all():
        raise NonFiniteWeights(
            "the weights are not finite although the loss was: lower --lr or set --clip-grad 1; the last checkpoint is "
            "good"
        )
    tensors = {f"model.{name}": tensor for name, tensor in state.model.items()}
    for owner, entries in (("optimizer", state.moments), ("group", state.counters)):
        for index, values in entries.items():
            tensors |= dict(_stored(f"{owner}.{index}.{name}", value) for name, value in values.items())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / STATE_FILE)


def read_state(folder: Path, device: torch.device) -> EngineState:
    """Read a state that `write_state` wrote.

    Raises:
        RunError: another program or an earlier version wrote the checkpoint.
    """
    if not (folder / STATE_FILE).exists():
        raise RunError(
            f"the run's checkpoint has no {STATE_FILE}: an earlier version wrote it; start again with --overwrite"
        )
    state = EngineState({}, {})
    for name, tensor in safetensors.torch.load_file(folder / STATE_FILE, device=str(device)).items():
        owner, _, rest = name.partition(".")
        if owner == "model":
            state.model[rest] = tensor
            continue
        index, _, key = rest.partition(".")
        name, _, kind = key.partition(":")
        entries = state.moments if owner == "optimizer" else state.counters
        entries.setdefault(int(index), {})[name] = tensor.item() if kind else tensor
    return state


def _stored(name: str, value: Any) -> tuple[str, Tensor]:
    """Return the name and the tensor of a value in the file; a plain number has its type in its name."""
    if isinstance(value, Tensor):
        return name, value
    if not isinstance(value, bool | int | float):
        raise TypeError(f"the optimizer's state holds a {type(value).__name__}")
    dtype = torch.float64 if isinstance(value, float) else None
    return f"{name}:{type(value).__name__}", torch.tensor(value, dtype=dtype)
