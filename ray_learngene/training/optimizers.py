"""timm's optimizers and learning rate schedule, from a configuration."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from ray_learngene.config import OptimizationConfig
from ray_learngene.errors import UserError, did_you_mean, reason_of
from ray_learngene.training.engine_state import EngineState, counters_of, read_state, write_state

ADAMW: dict[str, Any] = {"opt": "adamw", "opt_args": {}, "layer_decay": 1.0}  # the default settings
_FUSED = ("adamw", "adam")  # torch's own, with a fused kernel on every device
_LOOKAHEAD = "lookahead_"


def learning_rate(config: OptimizationConfig) -> float:
    """Return the peak learning rate of a configuration: `lr` times the global batch over 512."""
    return config.lr * config.batch_size / 512


def current_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of this step, before layer decay."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def create_optimizer(module: nn.Module, config: OptimizationConfig, **grouping: Any) -> torch.optim.Optimizer:
    """Create timm's optimizer of that name, by default fused AdamW.

    timm makes the parameter groups. 1-D parameters and those that the module's `no_weight_decay` names have no weight
    decay. With layer decay every layer of its `group_matcher` has a group.

    Args:
        grouping: Arguments of `create_optimizer_v2` that decide about groups otherwise.

    Raises:
        UserError: timm has no such optimizer, it does not take these arguments, or the module has no layers to tell
            apart.
    """
    settings: dict[str, Any] = {"lr": learning_rate(config), "weight_decay": config.weight_decay}
    require_layers(module, config)
    if config.layer_decay < 1:
        settings["layer_decay"] = config.layer_decay
    if config.opt in _FUSED:
        settings["fused"] = True
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in config.opt_args.items()}
    with _in_one_line(config):
        return create_optimizer_v2(module, opt=config.opt, **{**settings, **grouping, **arguments})


def require_layers(module: nn.Module, config: OptimizationConfig) -> None:
    """Refuse layer decay where the layers of a module share parameters."""
    if config.layer_decay < 1 and getattr(module, "group_matcher", None) is None:
        raise UserError(
            f"--layer-decay {config.layer_decay:g}: the layers of this {type(module).__name__} share parameters: "
            "leave it out, it is for models whose layers are their own (ancestry, sweep)"
        )


@contextmanager
def _in_one_line(config: OptimizationConfig) -> Iterator[None]:
    """Turn what timm and its optimizers raise about a name or an argument into one line."""
    flags = f"--opt {config.opt}" + (f" --opt-args {json.dumps(config.opt_args)}" if config.opt_args else "")
    name = config.opt.removeprefix(_LOOKAHEAD)
    if name not in list_optimizers():
        near = did_you_mean(name, map(str, list_optimizers()), most=3)
        raise UserError(f"--opt {config.opt}: timm has no such optimizer{near}")
    if get_optimizer_info(name).second_order:
        raise UserError(
            f"--opt {config.opt}: it needs second derivatives, which training does not compute: choose another"
        )
    try:
        yield
    except ImportError as error:
        raise UserError(f"{flags}: {reason_of(error)}") from None
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{flags}: {reason_of(error)}") from None


@dataclass(frozen=True)
class Traits:
    """What an optimizer asks of memory and of engines.

    Attributes:
        moments: Values that it holds for every parameter.
        elementwise: It updates every element of a parameter alone, so that ZeRO can partition its state.
    """

    moments: float
    elementwise: bool


ADAMW_TRAITS = Traits(moments=2, elementwise=True)


def traits_of(config: OptimizationConfig) -> Traits:
    """Try the optimizer of a configuration on a small matrix.

    Raises:
        UserError: see `create_optimizer`, or a run could not continue from a checkpoint of its state.
    """
    return _traits(config.opt, json.dumps(config.opt_args, sort_keys=True))


_SIDE, _STEPS, _MORE = 32, 8, 3  # of the matrix, and before and after a checkpoint


@lru_cache(maxsize=64)
def _traits(opt: str, arguments: str) -> Traits:
    config = OptimizationConfig(opt=opt, opt_args=json.loads(arguments), epochs=1, warmup_epochs=0)
    with torch.random.fork_rng(devices=[]), _in_one_line(config):
        torch.manual_seed(0)
        # halves of other norms, and small ones: where a layer's norm sets the step, it is not clipped
        scale = torch.tensor([0.1, 0.01]).repeat_interleave(_SIDE // 2)[:, None]
        whole = nn.ParameterList([scale * torch.randn(_SIDE, _SIDE)])
        parts = nn.ParameterList([part.clone() for part in whole[0].detach().flatten().chunk(2)])
        gradients = [torch.randn(_SIDE, _SIDE) for _ in range(_STEPS + _MORE)]
        optimizer = create_optimizer(whole, config)
        _take(optimizer, whole, gradients[:_STEPS])
        state = optimizer.state_dict()["state"]
        held = sum(value.numel() for each in state.values() for value in each.values() if isinstance(value, Tensor))
        if not _continues(optimizer, whole, gradients[_STEPS:], config):
            raise UserError(f"--opt {opt}: a run could not continue from a checkpoint of its state: choose another")
        # decayed like the matrix, as ZeRO's flat partitions are
        _take(create_optimizer(parts, config, filter_bias_and_bn=False), parts, gradients)
    apart = torch.cat([part.detach() for part in parts])
    same = torch.allclose(apart, whole[0].detach().flatten(), rtol=1e-5, atol=1e-7)
    # ZeRO looks for the state in the optimizer itself; Lookahead's is in the one that it wraps. ZeRO-3 takes a step for
    # every group, which would count several times. The engine keeps one step for all groups and no other number:
    # LaProp's sums of learning rates differ between groups.
    numbers = {key for each in state.values() for key, value in each.items() if not getattr(value, "ndim", 0)}
    alone = (not held or bool(optimizer.state)) and not counters_of(optimizer.param_groups) and numbers <= {"step"}
    return Traits(round(held / _SIDE**2, 2), same and alone)


def _take(optimizer: torch.optim.Optimizer, parameters: nn.ParameterList, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        for parameter, part in zip(parameters, gradient.flatten().chunk(len(parameters)), strict=True):
            parameter.grad = part.reshape(parameter.shape).clone()
        optimizer.step()


def _continues(
    optimizer: torch.optim.Optimizer, parameters: nn.ParameterList, gradients: list[Tensor], config: OptimizationConfig
) -> bool:
    """Return whether steps from a checkpoint equal the steps without one, bit for bit."""
    others = copy.deepcopy(parameters)
    again = create_optimizer(others, config)
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_state(Path(folder), EngineState.of(parameters, optimizer))
        except TypeError:
            return False
        read_state(Path(folder), torch.device("cpu")).restore(again)
    _take(optimizer, parameters, gradients)
    _take(again, others, gradients)
    return torch.equal(parameters[0], others[0])


def create_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizationConfig, steps_per_epoch: int
) -> Scheduler | None:
    """Create a linear warm-up, then a cosine to `min_lr`: a function of the step alone. None for 0 epochs."""
    if config.epochs == 0:
        return None
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # fractions work
        warmup_lr=config.warmup_lr,
        min_lr=min(config.min_lr, learning_rate(config)),
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule
