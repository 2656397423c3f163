"""The names that a DeepSpeed JSON may hold are those of the installed DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import deepspeed
import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.zero import offload_config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel

from ray_learngene.errors import UserError
from ray_learngene.training.deepspeed_settings import CHECKED, FLAT, OFFLOAD, SECTIONS, ZERO, check_names


def names(model: type[BaseModel]) -> set[str]:
    aliases = {field.alias for field in model.model_fields.values() if field.alias}
    return {*model.model_fields, *aliases}


def test_the_settings_of_zero_are_those_of_deepspeed() -> None:
    assert names(DeepSpeedZeroConfig) == ZERO
    assert names(offload_config.DeepSpeedZeroOffloadOptimizerConfig) == OFFLOAD["offload_optimizer"]
    assert names(offload_config.DeepSpeedZeroOffloadParamConfig) == OFFLOAD["offload_param"]


def test_deepspeed_reads_every_section() -> None:
    source = "".join(path.read_text() for path in Path(deepspeed.__file__).parent.rglob("*.py"))
    every = SECTIONS.union(*FLAT.values(), FLAT)
    assert [name for name in every if f'"{name}"' not in source and f"'{name}'" not in source] == []


def test_the_settings_of_monitors_are_those_of_deepspeed() -> None:
    models = {
        "comms_logger": CommsLoggerConfig,
        "csv_monitor": CSVConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
    }
    assert {section: names(model) for section, model in models.items()} == CHECKED


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"zero_optimizations": {}}, "f: DeepSpeed has no setting 'zero_optimizations'; did you mean zero_optimi"),
        ({"zero_optimization": {"overlap_com": True}}, ".* 'overlap_com'; did you mean overlap_comm"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "_optimizer: .* did you mean device"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, "offload_optimizer: expected a JSON object"),
        ({"activation_checkpointing": {"cpu_checkpoint": True}}, ".* did you mean cpu_checkpointing"),
        ({"aio": {"block": 1}}, "f: aio: DeepSpeed has no setting 'block'; did you mean block_size"),
        ({"flops_profiler": {"enable": True}}, "f: flops_profiler: .* did you mean enabled"),
        ({"wandb": {"projects": "x"}}, "f: wandb: .* did you mean project"),
        ({"checkpoint": []}, "f: checkpoint: expected a JSON object"),
        ({"elasticity": {}}, "f: DeepSpeed has no setting 'elasticity'"),
    ],
)  # fmt: skip
def test_a_misspelt_setting_is_named(values: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_names(values, "f")
