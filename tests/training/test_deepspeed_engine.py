"""ZeRO 0 to 3 on real DeepSpeed give the weights that one plain process gives on the same global batches."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp

from ray_learngene.config import AugmentationConfig, DataConfig, OptimizationConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.errors import RunError, UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.features import FeatureReader, feature_shapes, readable
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.training.batches import Batches
from ray_learngene.training.deepspeed_engine import DeepSpeedEngine, deepspeed_config, read_user_config, zero_stage
from ray_learngene.training.engine import Engine, TorchEngine, prepare_layers, resolve_precision
from ray_learngene.training.engine_state import STATE_FILE, read_state
from ray_learngene.training.features import FeatureLoss, FeatureObjective, FeatureStudent
from ray_learngene.training.finite_guard import FiniteGuard
from ray_learngene.training.objectives import LabelObjective, Objective
from ray_learngene.training.optimizers import create_optimizer, create_schedule
from ray_learngene.training.step import Stepper
from ray_learngene.training.world import World
from tests.conftest import free_ports

CPU = torch.device("cpu")
STEPS = 4
FEATURES = "features of "
CONFIG = OptimizationConfig(epochs=1, batch_size=64, accumulation=2, lr=1e-2, warmup_epochs=0, clip_grad=1.0, seed=1)
# Blocks applied repeatedly, in micro-batches that three workers cannot have alike; generated parameters, some of
# which a step may leave out, with a batch that divides, as which image goes through which of the sizes depends on the
# micro-batch; templates.
CASES = [
    *(("sws:stages=2-2", stage, CONFIG) for stage in range(4)),
    *(("any-size:stages=5", stage, CONFIG.model_copy(update={"batch_size": 48})) for stage in (1, 3)),
    ("wave", 3, CONFIG),
    # state besides AdamW's moments, and many groups
    ("pretrained", 3, CONFIG.model_copy(update={"opt": "rmsproptf", "layer_decay": 0.7})),
    # a student of features, whose projectors are parameters too
    ("features of any-size", 3, CONFIG.model_copy(update={"batch_size": 48})),
    # the backward pass repeats blocks, whose parameters are gathered again
    ("any-size:stages=5", 3, CONFIG.model_copy(update={"batch_size": 48, "grad_checkpointing": True})),
]
# A shared block's gradient is a sum, in fp32, of gradients that autocast has rounded.
BF16 = CONFIG.model_copy(update={"precision": "bf16", "clip_grad": 0.0})


READER = FeatureReader()


def student(method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = PRESETS["nano"].replace(depth=4)
    if method.startswith(FEATURES):
        shapes = feature_shapes(build(spec, seed=7), READER, torch.zeros(1, 3, 8, 8))
        auxiliary = create_method(method.removeprefix(FEATURES)).auxiliary(spec.replace(classes=0))
        return FeatureStudent(auxiliary, READER, shapes, ImageShape(3, 8, 8))
    return create_method(method).auxiliary(spec)


def objective_of(module: torch.nn.Module) -> Objective:
    if not isinstance(module, FeatureStudent):
        return LabelObjective()
    teacher = readable(build(PRESETS["nano"].replace(depth=4), seed=7))
    return FeatureObjective(teacher, READER, FeatureLoss())


def train(
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    config: OptimizationConfig,
    steps: range = range(STEPS),
    rank: int = 0,
    world_size: int = 1,
) -> None:
    sets = open_image_sets(DataConfig(data="digits"))
    preprocessing = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")
    images = ImagePipeline(sets.train, sets.val, preprocessing, AugmentationConfig(scale=(0.8, 1.0), mixup=0.5))
    stepper = Stepper(
        engine,
        objective_of(engine.module),
        optimizer,
        create_schedule(optimizer, config, len(sets.train) // config.batch_size),
        STEPS,
        CPU,
        FiniteGuard(CPU),
        micro_batch=config.batch_size / (world_size * config.accumulation),
    )
    batches = Batches(images, config, World(CPU, rank, world_size))
    for step in steps:
        stepper(step, batches.of_step(step))


def plain(method: str, config: OptimizationConfig) -> tuple[TorchEngine, torch.optim.Optimizer]:
    module = student(method)
    prepare_layers(module, config)
    optimizer = create_optimizer(module, config)
    return TorchEngine(module, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad), optimizer


OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


def worker(rank: int, world_size: int, port: int, folder: Path, step: int) -> None:
    """Take one step of every case from the checkpoint that others wrote; two workers also train one undisturbed."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    gc.freeze()  # ZeRO-3 collects garbage for every engine: 0.3 s each, if what was imported counts

    def create(
        method: str, stage: int, config: OptimizationConfig, user: dict[str, Any] | None = None
    ) -> tuple[DeepSpeedEngine, torch.optim.Optimizer]:
        module = student(method)
        prepare_layers(module, config)
        optimizer = create_optimizer(module, config)
        autocast = resolve_precision(config.precision, CPU)
        settings = deepspeed_config(config, world_size=world_size, zero=stage, autocast=autocast, user=user or {})
        return DeepSpeedEngine(module, optimizer, settings), optimizer

    for number, (method, stage, config) in enumerate(CASES):
        engine, optimizer = create(method, stage, config)
        engine.load(folder / f"{number}-{step}")
        engine.save(folder / f"{number}-{step}-again")
        train(engine, optimizer, config, range(step, step + 1), rank, world_size)
        engine.save(folder / f"{number}-{step + 1}")
        if world_size == 2:
            engine, optimizer = create(method, stage, config)
            train(engine, optimizer, config, range(STEPS), rank, world_size)
            engine.save(folder / f"{number}-undisturbed")
    for stage in range(4) if world_size == 2 else ():
        engine, optimizer = create("sws:stages=2-2", stage, BF16)
        if stage > 0:
            with pytest.raises(RunError, match="not finite in any step"):
                engine.save(folder)
        train(engine, optimizer, BF16, range(STEPS), rank, world_size)
        engine.save(folder / f"bf16-{stage}")
    for stage in (1, 2) if world_size == 2 else ():
        engine, optimizer = create("sws:stages=2-2", stage, CONFIG, OFFLOAD)
        train(engine, optimizer, CONFIG, range(STEPS), rank, world_size)
        engine.save(folder / f"offload-{stage}")
    with pytest.raises(RunError, match="DeepSpeed does not start with these settings .*overlap_comm"):
        create("sws:stages=2-2", 1, CONFIG, {"zero_optimization": {"overlap_comm": "perhaps"}})
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads end an interpreter that takes its time to end now and then (std::terminate)


@pytest.mark.slow
def test_every_zero_stage_equals_one_plain_process_also_where_the_number_of_workers_changes(tmp_path: Path) -> None:
    for number, step in itertools.product(range(len(CASES)), range(STEPS + 1)):
        for name in ("", "-again"):
            (tmp_path / f"{number}-{step}{name}").mkdir()
        (tmp_path / f"{number}-undisturbed").mkdir(exist_ok=True)
    for stage in range(4):
        (tmp_path / f"bf16-{stage}").mkdir()
        (tmp_path / f"offload-{stage}").mkdir()
    for number, (method, _, config) in enumerate(CASES):
        engine, optimizer = plain(method, config)
        train(engine, optimizer, config, range(1))
        engine.save(tmp_path / f"{number}-1")
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all workers
    for step, world_size in ((1, 2), (2, 3), (3, 1)):
        arguments = (world_size, free_ports(1)[0], tmp_path, step)
        mp.start_processes(worker, arguments, nprocs=world_size, start_method="forkserver")
    for number, (method, stage, config) in enumerate(CASES):
        alone, optimizer = plain(method, config)
        train(alone, optimizer, config)
        moved, optimizer = plain(method, config)
        moved.load(tmp_path / f"{number}-3")
        train(moved, optimizer, config, range(3, STEPS))
        together = read_state(tmp_path / f"{number}-undisturbed", CPU).model
        last = read_state(tmp_path / f"{number}-{STEPS}", CPU).model  # of a single worker
        start = student(method).state_dict()
        for name, tensor in alone.module.state_dict().items():
            for state in (together, moved.module.state_dict(), last):
                # other sums of the same gradients: they differed by 5.3e-6 on one CPU, which has AVX2 alone
                torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-5, msg=f"{method} {stage} {name}")
            assert not torch.equal(tensor, start[name]), f"{name} was not trained"
        for step in (1, 2, 3):  # read and written again by other workers, it is the same bit for bit
            one, other = (
                safetensors.torch.load_file(tmp_path / f"{number}-{step}{name}" / STATE_FILE) for name in ("", "-again")
            )
            assert one.keys() == other.keys()
            for name, tensor in one.items():
                assert torch.equal(tensor, other[name]), f"{method} {stage} {name}"
    alone, optimizer = plain("sws:stages=2-2", CONFIG)
    train(alone, optimizer, CONFIG)
    for stage in (1, 2):
        offloaded = read_state(tmp_path / f"offload-{stage}", CPU).model
        for name, tensor in alone.module.state_dict().items():
            torch.testing.assert_close(offloaded[name], tensor, rtol=0, atol=5e-6, msg=f"offload {stage} {name}")
    unsplit = read_state(tmp_path / "bf16-0", CPU).model
    for stage in (1, 2, 3):  # no stage rounds what it sums up
        for name, tensor in read_state(tmp_path / f"bf16-{stage}", CPU).model.items():
            torch.testing.assert_close(tensor, unsplit[name], rtol=0, atol=2e-5, msg=f"bf16 {stage} {name}")


@pytest.mark.parametrize(
    ("asked", "parameters", "user", "stage"),
    [
        (None, 2**27 - 1, {}, 0),
        (None, 2**27, {}, 1),
        (None, 1, {"zero_optimization": {"reduce_bucket_size": 1}}, 1),
        (2, 1, {}, 2),
        (0, 2**27, {}, 0),
    ],
)
def test_the_default_stage_splits_moments_that_are_large(
    asked: int | None, parameters: int, user: dict[str, Any], stage: int
) -> None:
    weights = torch.nn.Parameter(torch.empty(parameters, device="meta"))
    assert zero_stage(asked, torch.optim.AdamW([weights]), user) == stage


def test_the_users_json_is_merged_over_ours(tmp_path: Path) -> None:
    path = tmp_path / "user.json"
    path.write_text('{"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": true}')
    user = read_user_config(str(path))
    settings = deepspeed_config(CONFIG, world_size=2, zero=2, autocast=torch.bfloat16, user=user)
    assert settings["zero_force_ds_cpu_optimizer"] is False
    assert settings["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert settings["wall_clock_breakdown"] is True
    assert settings["gradient_clipping"] == 1.0
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert settings["train_micro_batch_size_per_gpu"] == 16


@pytest.mark.parametrize(
    ("stage", "clip_grad", "user", "measured"),
    [(1, 0.0, {}, False), (2, 0.0, {}, False), (1, 1.0, {}, True), (1, 0.0, {"cpu_offload": True}, True)],
)
def test_gradients_are_measured_where_something_needs_their_norm(
    stage: int, clip_grad: float, user: dict[str, Any], measured: bool
) -> None:
    config = CONFIG.model_copy(update={"clip_grad": clip_grad})
    settings = deepspeed_config(config, world_size=2, zero=stage, autocast=None, user={"zero_optimization": user})
    assert settings["zero_optimization"].get("compute_grad_norm", True) is measured


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"zero_optimization": {"stage": 3}}', "the ZeRO stage is set by --zero"),
        ('{"zero_optimization": null}', "zero_optimization is not a JSON object"),
        ('{"zero_optimization": true}', "zero_optimization is not a JSON object"),
        ('{"optimizer": {}}', "'optimizer' is set by the run's own flags"),
    ],
)
def test_a_bad_deepspeed_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "user.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_user_config(str(path))
