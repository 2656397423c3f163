"""DeepSpeed behind the calls that training makes. The only file that imports DeepSpeed."""

from __future__ import annotations

import json
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.errors import RunError, UserError

# What the run decides itself: a user's DeepSpeed JSON must leave these out.
_OURS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "bf16", "fp16", "torch_autocast"),
)
_TAG = "state"
_WORLD_FILE = "world.json"


def deepspeed_config(
    config: OptimizationConfig, *, world_size: int, zero: int, autocast: torch.dtype | None, user: dict[str, Any]
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run; the user's is merged over it, section by section."""
    ours: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // (world_size * config.accumulation),
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip_grad,  # explicit: left out, DeepSpeed clips at 1.0
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    if autocast is not None:
        ours["torch_autocast"] = {"enabled": True, "dtype": str(autocast).removeprefix("torch.")}
    for key, value in user.items():
        ours[key] = {**ours[key], **value} if isinstance(value, dict) and isinstance(ours.get(key), dict) else value
    return ours


def read_user_config(path: str) -> dict[str, Any]:
    """A user's DeepSpeed JSON.

    Raises:
        UserError: it cannot be read, or it sets what the run's own flags decide.
    """
    try:
        values = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--deepspeed {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--deepspeed {path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--deepspeed {path}: expected a JSON object")
    for key in _OURS:
        if key in values:
            raise UserError(f"--deepspeed {path}: {key!r} is set by the run's own flags; remove it from the file")
    if "stage" in (values.get("zero_optimization") or {}):
        raise UserError(f"--deepspeed {path}: the ZeRO stage is set by --zero; remove it from the file")
    return values


class DeepSpeedEngine:
    """A DeepSpeed engine on the process group that Ray Train has set up.

    Weights stay fp32 and bf16 is torch autocast, so that the arithmetic is that of one plain process.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # Without this, the first CPU run compiles a shared-memory op for minutes, or fails where there is no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._deepspeed = deepspeed
        self._stage = settings["zero_optimization"]["stage"]
        self._world_size = torch.distributed.get_world_size()
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.module = self._engine.module

    def __call__(self, images: Tensor) -> Tensor:
        return self._engine(images)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        self._engine.step()

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def eval(self) -> None:
        self._engine.eval()

    def gathered(self) -> Any:
        """A context, entered by all workers, in which each has the whole parameters (ZeRO-3 splits them)."""
        if self._stage < 3:
            return nullcontext()
        return self._deepspeed.zero.GatheredParameters(list(self.module.parameters()))

    def save(self, folder: Path) -> None:
        """Write this worker's part of the state; the parts of all workers belong into one folder."""
        self._engine.save_checkpoint(str(folder), tag=_TAG)
        if torch.distributed.get_rank() == 0:
            (folder / _WORLD_FILE).write_text(json.dumps({"workers": self._world_size, "zero": self._stage}))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            RunError: the checkpoint is of another number of workers or another ZeRO stage.
        """
        world = json.loads((folder / _WORLD_FILE).read_text())
        if world["zero"] != self._stage or (self._stage > 0 and world["workers"] != self._world_size):
            raise RunError(
                f"the run's checkpoint was written by {world['workers']} workers with ZeRO-{world['zero']}, this run "
                f"has {self._world_size} with ZeRO-{self._stage}: use the same --workers and --zero, or --overwrite to "
                "start anew"
            )
        self._engine.load_checkpoint(str(folder), tag=_TAG)
