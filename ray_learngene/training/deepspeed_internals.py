"""Private parts of DeepSpeed that this package uses. tests/training/test_deepspeed_internals.py says what breaks.

DeepSpeed may change these in any version: read the test before raising the version in requirements.txt. It is never
imported here, because the accelerator is chosen before its first import.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def without_shared_memory_op(deepspeed: Any) -> None:
    """Stop DeepSpeed from compiling its communication op on the CPU: it takes minutes, or fails without a compiler."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def flat_parameters(zero: Any, stage: int) -> list[Tensor]:
    """Return this rank's fp32 partition of the weights, one flat tensor per group, which ZeRO's steps update."""
    return zero.single_partition_of_fp32_groups if stage < 3 else zero.fp32_partitioned_groups_flat


def link_moments(zero: Any, stage: int) -> None:
    """Link parameters to their moments again; DeepSpeed does so only after the first step of the first group."""
    if stage < 3:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def partition_size(parameter: nn.Parameter) -> int:
    """Return the number of elements of a ZeRO-3 parameter's partition, padding included."""
    return parameter.ds_tensor.numel()  # type: ignore[attr-defined]
