"""What this package takes from DeepSpeed's private parts. A test that fails says what a new version breaks.

tests/training/test_deepspeed_engine.py runs all of it in real process groups.
"""

from __future__ import annotations

import inspect

import deepspeed
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


def test_the_shared_memory_op_can_be_switched_off() -> None:
    """If this fails, the first run on a CPU compiles for minutes, or ends where there is no compiler."""
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


def test_zero_keeps_its_partitions_where_checkpoints_read_them() -> None:
    """If this fails, checkpoints under ZeRO lose or mix up the moments of the optimizer."""
    low, high = inspect.getsource(DeepSpeedZeroOptimizer), inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    assert "self.single_partition_of_fp32_groups" in low
    assert "self.fp32_partitioned_groups_flat" in high
    assert "def refresh_fp32_params" in low and "def refresh_fp32_params" in high
    assert "param.ds_tensor" in inspect.getsource(Init)


def test_moments_are_linked_again_when_told_so() -> None:
    """If this fails, a run under ZeRO 1 or 2 goes on from a checkpoint without its moments."""
    source = inspect.getsource(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)
    assert "if not self._hp_optimizer_states_linked" in source
