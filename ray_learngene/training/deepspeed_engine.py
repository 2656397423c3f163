"""DeepSpeed behind the calls that training makes. The only file that imports DeepSpeed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.errors import RunError, UserError
from ray_learngene.training.engine_state import EngineState, read_state, write_state

# What the run decides itself: a user's DeepSpeed JSON must leave these out.
_OURS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("managed_gradient_accumulation", "optimizer", "scheduler", "bf16", "fp16", "torch_autocast"),
)
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, beside its step count
_NEED_NORM = {"offload_optimizer", "cpu_offload", "zenflow"}  # of a user's settings for ZeRO
_WORTH_SPLITTING = 2**30  # bytes of moments


def zero_stage(asked: int | None, optimizer: torch.optim.Optimizer, user: dict[str, Any]) -> int:
    """The ZeRO stage of a run that may ask for none.

    Stage 1 splits AdamW's moments over the workers and calls them together five times a step, stage 0 once: small
    moments are not worth it, unless the user's own DeepSpeed configuration has settings for ZeRO.
    """
    if asked is not None:
        return asked
    if "zero_optimization" in user:
        return 1
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    return int(len(_MOMENTS) * 4 * trained >= _WORTH_SPLITTING)


def deepspeed_config(
    config: OptimizationConfig, *, world_size: int, zero: int, autocast: torch.dtype | None, user: dict[str, Any]
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run; the user's is merged over it, section by section.

    It leaves out what would let the host wait for the GPU in every step: throughput timers, and a gradient norm that
    nothing is clipped by, without which ZeRO takes a step whose gradients are not finite, as one plain process does.
    Gradients are summed in fp32 also under autocast.
    """
    # DeepSpeed only multiplies these: where a batch does not divide, `train_steps` weighs the uneven micro-batches
    micro_batch = config.batch_size // (world_size * config.accumulation)
    ours: dict[str, Any] = {
        "train_batch_size": micro_batch * world_size * config.accumulation,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip_grad,  # explicit: left out, DeepSpeed clips at 1.0
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},
    }
    if zero in (1, 2) and config.clip_grad == 0 and not _NEED_NORM & user.get("zero_optimization", {}).keys():
        ours["zero_optimization"]["compute_grad_norm"] = False
    if autocast is not None:
        name = str(autocast).removeprefix("torch.")
        ours["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
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
    if not isinstance(values.get("zero_optimization", {}), dict):
        raise UserError(f"--deepspeed {path}: zero_optimization is no JSON object: give one, or leave it out")
    if "stage" in values.get("zero_optimization", {}):
        raise UserError(f"--deepspeed {path}: the ZeRO stage is set by --zero; remove it from the file")
    return values


class DeepSpeedEngine:
    """A DeepSpeed engine on the process group that Ray Train has set up.

    Weights stay fp32 and bf16 is torch autocast, so that the arithmetic is that of one plain process.

    Args:
        module: On the device that this worker trains on.
        settings: See `deepspeed_config`.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
        on_cpu = next(module.parameters()).device.type == "cpu"
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if on_cpu:  # else the first run compiles a shared-memory op for minutes, or fails where there is no compiler
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._deepspeed = deepspeed
        self._stage = settings["zero_optimization"]["stage"]
        self._clip_grad = 0.0
        if self._stage == 0:  # torch's own clipping, as DeepSpeed's lets the host wait for the GPU
            self._clip_grad = settings["gradient_clipping"]
            settings = {**settings, "gradient_clipping": 0.0}
        self._optimizer = optimizer
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.module = self._engine.module

    def __call__(self, images: Tensor) -> Tensor:
        return self._engine(images)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        if self._clip_grad > 0 and self._engine.is_gradient_accumulation_boundary():
            nn.utils.clip_grad_norm_(self._parameters, self._clip_grad)
        self._engine.step()

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def eval(self) -> None:
        self._engine.eval()

    def gathered(self, *, write: bool = False) -> Any:
        """A context, entered by all workers, in which each has the whole parameters (ZeRO-3 splits them).

        Args:
            write: Keep what the first worker changes in them.
        """
        if self._stage < 3:
            return nullcontext()
        parameters = list(self.module.parameters())
        return self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)

    def save(self, folder: Path) -> None:
        """Gather the state of all workers; the first one writes it.

        Not DeepSpeed's own checkpoint: that is a pickle, which for ZeRO 1 to 3 only as many workers can read.
        """
        first = torch.distributed.get_rank() == 0
        with self.gathered():
            model = {name: x.cpu().clone() for name, x in self.module.state_dict().items()} if first else {}
        moments = {index: each for index, each in self._gather_moments() if first}
        if first:
            write_state(folder, EngineState(model, moments))

    def load(self, folder: Path) -> None:
        """Read what any number of workers saved, with any ZeRO stage."""
        state = read_state(folder, torch.device("cpu"))
        with self.gathered(write=True):
            self.module.load_state_dict(state.model)
        if self._stage == 0:
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": state.moments, "param_groups": groups})
        else:
            self._engine.optimizer.refresh_fp32_params()
            self._scatter_moments(state.moments)

    def _flat_parameters(self) -> list[Tensor]:
        """This worker's fp32 share of the weights, one flat tensor for a group: what ZeRO's AdamW steps on."""
        zero = self._engine.optimizer
        return zero.single_partition_of_fp32_groups if self._stage < 3 else zero.fp32_partitioned_groups_flat

    def _gather_moments(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The whole moments of every parameter on the CPU. All workers go through them together.

        Raises:
            RunError: ZeRO has left out every step so far, as it does where it measures gradients that are not finite.
        """
        if self._stage == 0:
            yield from self._optimizer.state_dict()["state"].items()
            return
        self._link_moments()
        step = self._engine.optimizer.optimizer.state[self._flat_parameters()[0]].get("step")
        if step is None:
            raise RunError(
                "the gradients were not finite in any step, although the loss was: lower --lr, lengthen "
                "--warmup-epochs or train with --precision fp32"
            )
        for index, parameter in enumerate(self._parameters):
            get = self._deepspeed.utils.safe_get_full_optimizer_state
            yield index, {"step": step.cpu().clone(), **{key: get(parameter, key).cpu() for key in _MOMENTS}}

    def _scatter_moments(self, moments: dict[int, dict[str, Tensor]]) -> None:
        """Take this worker's share of the moments."""
        zero = self._engine.optimizer
        step = max((each["step"] for each in moments.values()), key=Tensor.item)  # one count for a whole group
        for flat in self._flat_parameters():
            zeros = {key: torch.zeros_like(flat) for key in _MOMENTS}
            zero.optimizer.state[flat] = {"step": step.to(flat.device, copy=True), **zeros}
        self._link_moments()
        for index, each in moments.items():
            for key in _MOMENTS:
                self._set_moment(self._parameters[index], each[key], key)

    def _link_moments(self) -> None:
        """Let DeepSpeed find the parameters' moments: by itself it does so after the first group's first step only."""
        if self._stage < 3:
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _set_moment(self, parameter: nn.Parameter, whole: Tensor, key: str) -> None:
        if self._stage < 3:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, whole, key)
            return
        # this worker's share, padded, which DeepSpeed's own function for whole tensors forgets
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(whole.flatten(), (0, size * torch.distributed.get_world_size() - whole.numel()))
        share = padded.narrow(0, size * torch.distributed.get_rank(), size)
        self._deepspeed.utils.safe_set_local_optimizer_state(parameter, share, key)
