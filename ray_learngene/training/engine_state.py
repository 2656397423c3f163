"""What an engine writes into a checkpoint: whole fp32 weights and AdamW moments, whoever trained them.

The file is the same for one plain process, for every number of workers and for every ZeRO stage, so that a run goes on
with any of them. Safetensors, no pickle.
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
        moments: `step`, `exp_avg` and `exp_avg_sq` by the parameter's position in the optimizer's groups; a parameter
            that has had no gradient yet is missing.
    """

    model: dict[str, Tensor]
    moments: dict[int, dict[str, Tensor]]


class NonFiniteWeights(Diverged):
    """A step made weights NaN or infinite although its loss was finite."""


def write_state(folder: Path, state: EngineState) -> None:
    """Write a state into a folder, made where it is missing.

    Raises:
        NonFiniteWeights: nobody could continue from it.
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
    """Read what `write_state` wrote.

    Raises:
        RunError: the checkpoint is another program's, or an earlier version's.
    """
    if not (folder / STATE_FILE).exists():
        raise RunError(
            f"the run's checkpoint has no {STATE_FILE}: an earlier version wrote it; start anew by --overwrite"
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
