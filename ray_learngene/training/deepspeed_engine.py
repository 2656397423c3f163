"""DeepSpeed behind the `Engine` interface. No other file imports DeepSpeed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.config.documents import parse_object, read_document
from ray_learngene.errors import RunError, UserError, reason_of
from ray_learngene.training import deepspeed_internals
from ray_learngene.training.deepspeed_settings import check_names
from ray_learngene.training.engine_state import EngineState, counters_of, read_state, write_state
from ray_learngene.training.optimizers import ADAMW_TRAITS, Traits

# Settings that the run's own flags determine; a user's DeepSpeed JSON must omit them.
_OURS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("managed_gradient_accumulation", "optimizer", "scheduler", "bf16", "fp16", "torch_autocast"),
)
_NEED_NORM = {"offload_optimizer", "cpu_offload", "zenflow"}  # a user's ZeRO settings that need the gradient norm
_WORTH_SPLITTING = 2**30  # bytes of the optimizer's state


# What DeepSpeed raises about settings besides exceptions of its own: the same in every attempt.
_WRONG_SETTINGS = (ValueError, TypeError, AssertionError, LookupError, AttributeError, ImportError, NotImplementedError)


def zero_stage(
    asked: int | None, optimizer: torch.optim.Optimizer, user: dict[str, Any], traits: Traits = ADAMW_TRAITS
) -> int:
    """Choose the ZeRO stage of a run; `asked` is the user's, if any.

    Stage 1 partitions the optimizer's state over the ranks, with five collectives a step; stage 0 has one. A small
    state does not justify stage 1, unless the user's DeepSpeed configuration has ZeRO settings.
    """
    if asked is not None:
        return asked
    if not traits.elementwise:
        return 0
    if "zero_optimization" in user:
        return 1
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    return int(traits.moments * 4 * trained >= _WORTH_SPLITTING)


def deepspeed_config(
    config: OptimizationConfig, *, world_size: int, zero: int, autocast: torch.dtype | None, user: dict[str, Any]
) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a run; the user's is merged over it, section by section.

    It disables what makes the host wait for the GPU in every step: throughput timers, and the gradient norm if nothing
    is clipped. Without the norm ZeRO takes a step with non-finite gradients, as a single process does. Gradients are
    reduced in fp32, also under autocast.
    """
    # DeepSpeed only multiplies these numbers; `Stepper` weights uneven micro-batches if a batch does not divide
    micro_batch = config.batch_size // (world_size * config.accumulation)
    ours: dict[str, Any] = {
        "train_batch_size": micro_batch * world_size * config.accumulation,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip_grad,  # explicit: by default DeepSpeed clips at 1.0
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # else offload_optimizer refuses torch's AdamW, which all stages share
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
    """Read a user's DeepSpeed JSON.

    Raises:
        UserError: the file cannot be read, or it contains settings that the run's own flags determine.
    """
    try:
        values = parse_object(read_document(path))
    except OSError as error:
        raise UserError(f"--deepspeed {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--deepspeed {path}: {error}") from None
    for key in _OURS:
        if key in values:
            raise UserError(f"--deepspeed {path}: {key!r} is set by the run's own flags; remove it from the file")
    if not isinstance(values.get("zero_optimization", {}), dict):
        raise UserError(f"--deepspeed {path}: zero_optimization is not a JSON object: give one, or leave it out")
    if "stage" in values.get("zero_optimization", {}):
        raise UserError(f"--deepspeed {path}: the ZeRO stage is set by --zero; remove it from the file")
    check_names(values, f"--deepspeed {path}")
    return values


class DeepSpeedEngine:
    """A DeepSpeed engine on the process group that Ray Train has set up.

    Weights stay in fp32, and bf16 is torch autocast. The arithmetic is therefore that of a single process.

    Args:
        module: The module, on this rank's training device.
        settings: See `deepspeed_config`.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
        on_cpu = next(module.parameters()).device.type == "cpu"
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if on_cpu:
            deepspeed_internals.without_shared_memory_op(deepspeed)
        self._deepspeed = deepspeed
        self._stage = settings["zero_optimization"]["stage"]
        self._clip_grad = 0.0
        if self._stage == 0:  # clip with torch: DeepSpeed's clipping makes the host wait for the GPU
            self._clip_grad = settings["gradient_clipping"]
            settings = {**settings, "gradient_clipping": 0.0}
        self._optimizer = optimizer
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        try:
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        except Exception as error:
            if not isinstance(error, _WRONG_SETTINGS) and not type(error).__module__.startswith("deepspeed"):
                raise
            reason = reason_of(error)
            raise RunError(f"DeepSpeed does not start with these settings (--deepspeed, --zero): {reason}") from error
        self.module = self._engine.module
        # DeepSpeed would copy the gradients of a single rank twice, and sum them over no other
        self._alone = self._stage == 0 and torch.distributed.get_world_size() == 1
        if self._alone:
            self._engine.enable_backward_allreduce = False

    def __call__(self, images: Tensor) -> Tensor:
        return self._engine(images)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        if self._alone:  # what has no gradient has zeros, as with several ranks, so its weights decay
            for parameter in self._parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if self._clip_grad > 0 and self._engine.is_gradient_accumulation_boundary():
            nn.utils.clip_grad_norm_(self._parameters, self._clip_grad)
        self._engine.step()

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def eval(self) -> None:
        self._engine.eval()

    def gathered(self, *, write: bool = False) -> Any:
        """Return a context with whole parameters on every rank (ZeRO-3 partitions them); all ranks enter it.

        Args:
            write: Broadcast the changes of rank 0 to the parameters.
        """
        if self._stage < 3:
            return nullcontext()
        parameters = list(self.module.parameters())
        return self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)

    def save(self, folder: Path) -> None:
        """Gather the state of all ranks; rank 0 writes it.

        DeepSpeed's own checkpoint is a pickle; for ZeRO 1 to 3 only the same number of ranks can read it.
        """
        first = torch.distributed.get_rank() == 0
        with self.gathered():
            model = {name: x.cpu().clone() for name, x in self.module.state_dict().items()} if first else {}
        moments = {index: each for index, each in self._gather_moments() if first}
        if first:
            write_state(folder, EngineState(model, moments, counters_of(self._optimizer.param_groups)))

    def load(self, folder: Path) -> None:
        """Load a state that any number of ranks saved, at any ZeRO stage."""
        state = read_state(folder, torch.device("cpu"))
        with self.gathered(write=True):
            self.module.load_state_dict(state.model)
        if self._stage == 0:
            state.restore(self._optimizer)
        else:
            self._engine.optimizer.refresh_fp32_params()
            self._scatter_moments(state.moments)

    def _flat_parameters(self) -> list[Tensor]:
        return deepspeed_internals.flat_parameters(self._engine.optimizer, self._stage)

    def _gather_moments(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield the optimizer's whole state of every parameter, on the CPU. All ranks iterate in lockstep.

        Raises:
            RunError: ZeRO has skipped every step so far, because it measured non-finite gradients.
        """
        if self._stage == 0:
            yield from self._optimizer.state_dict()["state"].items()
            return
        self._link_moments()
        flat = self._flat_parameters()[0]
        state = self._engine.optimizer.optimizer.state[flat]
        stateless = all(group.get("momentum") == 0 for group in self._optimizer.param_groups)  # plain SGD
        if not state and not stateless:
            raise RunError(
                "the gradients were not finite in any step, although the loss was: lower --lr, lengthen "
                "--warmup-epochs or train with --precision fp32"
            )
        # sorted: every rank gathers the same one at a time
        moments = sorted(key for key, value in state.items() if isinstance(value, Tensor) and value.shape == flat.shape)
        counts = {key: value for key, value in state.items() if key not in moments}
        for index, parameter in enumerate(self._parameters):
            get = self._deepspeed.utils.safe_get_full_optimizer_state
            yield index, {**_copied(counts), **{key: get(parameter, key).cpu() for key in moments}}

    def _scatter_moments(self, moments: dict[int, dict[str, Tensor]]) -> None:
        """Load this rank's partition of the optimizer's state."""
        if not moments:
            return
        zero = self._engine.optimizer
        latest = max(moments.values(), key=lambda each: float(each.get("step", 0)))  # one count for a whole group
        whole = sorted(key for key, value in latest.items() if isinstance(value, Tensor) and value.ndim)
        for flat in self._flat_parameters():
            zeros = {key: torch.zeros_like(flat) for key in whole}
            counts = {key: value for key, value in latest.items() if key not in whole}
            zero.optimizer.state[flat] = {**_copied(counts, flat.device), **zeros}
        self._link_moments()
        for index, each in moments.items():
            for key in whole:
                self._set_moment(self._parameters[index], each[key], key)

    def _link_moments(self) -> None:
        deepspeed_internals.link_moments(self._engine.optimizer, self._stage)

    def _set_moment(self, parameter: nn.Parameter, whole: Tensor, key: str) -> None:
        if self._stage < 3:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, whole, key)
            return
        # set this rank's padded partition here: DeepSpeed's function for whole tensors omits the padding
        size = deepspeed_internals.partition_size(parameter)
        padded = nn.functional.pad(whole.flatten(), (0, size * torch.distributed.get_world_size() - whole.numel()))
        share = padded.narrow(0, size * torch.distributed.get_rank(), size)
        self._deepspeed.utils.safe_set_local_optimizer_state(parameter, share, key)


def _copied(values: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Copy the tensors among some values."""
    return {key: value.to(device, copy=True) if isinstance(value, Tensor) else value for key, value in values.items()}
