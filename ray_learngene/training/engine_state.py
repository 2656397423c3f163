"""The engine state in a checkpoint: whole fp32 weights and AdamW moments.

The file is the same for a single process, any number of ranks and any ZeRO stage, so a run can resume with any of them.
The format is safetensors, no pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ray_learngene.errors import Diverged, RunError

STATE_FILE = "engine.safetensors"


@dataclass
class EngineState:
    """Weights and moments.

    Attributes:
        model: The module's `state_dict`.
        moments: `step`, `exp_avg` and `exp_avg_sq` by the parameter's position in the optimizer's groups. Parameters
            that have had no gradient yet are missing.
    """

    model: dict[str, Tensor]
    moments: dict[int, dict[str, Tensor]]


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
    for index, moments in state.moments.items():
        tensors.update({f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()})
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
        else:
            index, _, key = rest.partition(".")
            state.moments.setdefault(int(index), {})[key] = tensor
    return state
