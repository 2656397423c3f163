"""ZeRO 0 to 3 on real DeepSpeed give the weights that one plain process gives on the same global batches."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from ray_learngene.config import AugmentationConfig, DataConfig, OptimizationConfig
from ray_learngene.data import open_image_sets
from ray_learngene.data.images import Images, Preprocessing
from ray_learngene.deepspeed_engine import DeepSpeedEngine, deepspeed_config, read_user_config
from ray_learngene.engine import (
    FiniteGuard,
    LabelObjective,
    TorchEngine,
    create_optimizer,
    create_schedule,
    train_steps,
)
from ray_learngene.errors import RunError, UserError
from ray_learngene.methods import create_method
from ray_learngene.specs import PRESETS
from tests.conftest import free_ports

CPU = torch.device("cpu")
STEPS, WORKERS = 4, 2
CONFIG = OptimizationConfig(epochs=1, batch_size=64, accumulation=2, lr=1e-2, warmup_epochs=0, clip_grad=1.0, seed=1)


def student(method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_method(method).auxiliary(PRESETS["nano"].replace(depth=4))


def train(module, optimizer, engine, rank: int, world_size: int, steps: int = STEPS) -> None:
    sets = open_image_sets(DataConfig(data="digits"))
    preprocessing = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")
    images = Images(sets.train, sets.val, preprocessing, AugmentationConfig(scale=(0.8, 1.0), mixup=0.5))
    schedule = create_schedule(optimizer, CONFIG, len(sets.train) // CONFIG.batch_size)
    for _ in train_steps(
        engine,
        images.training_batches(CONFIG, rank=rank, world_size=world_size),
        LabelObjective(),
        optimizer,
        schedule,
        total_steps=steps,
        accumulation=CONFIG.accumulation,
        device=CPU,
        guard=FiniteGuard(CPU),
    ):
        pass


def worker(rank: int, port: int, folder: str, method: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORKERS),
        "LOCAL_WORLD_SIZE": str(WORKERS),
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for stage in range(4):
        module = student(method)
        optimizer = create_optimizer(module, CONFIG)
        settings = deepspeed_config(CONFIG, world_size=WORKERS, zero=stage, autocast=None, user={})
        engine = DeepSpeedEngine(module, optimizer, settings)
        train(module, optimizer, engine, rank, WORKERS)
        with engine.gathered():
            if rank == 0:
                torch.save(engine.module.state_dict(), f"{folder}/zero{stage}.pt")
        shared = Path(folder) / f"checkpoint{stage}"
        shared.mkdir(exist_ok=True)
        engine.save(shared)
        torch.distributed.barrier()
        other = student(method)
        other_optimizer = create_optimizer(other, CONFIG)
        again = DeepSpeedEngine(other, other_optimizer, settings)
        again.load(shared)
        with engine.gathered(), again.gathered():
            for name, tensor in engine.module.state_dict().items():
                assert torch.equal(tensor, again.module.state_dict()[name]), (stage, name)
        if stage == 1:
            world = json.loads((shared / "world.json").read_text())
            torch.distributed.barrier()
            if rank == 0:
                (shared / "world.json").write_text(json.dumps({**world, "workers": 8}))
            torch.distributed.barrier()
            with pytest.raises(RunError, match="written by 8 workers with ZeRO-1, this run has 2"):
                again.load(shared)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["sws:stages=2-2", "any-size"])  # blocks applied repeatedly; generated parameters
def test_every_zero_stage_equals_one_plain_process_and_restores_its_checkpoint(tmp_path: Path, method: str) -> None:
    module = student(method)
    optimizer = create_optimizer(module, CONFIG)
    engine = TorchEngine(module, optimizer, accumulation=CONFIG.accumulation, clip_grad=CONFIG.clip_grad)
    train(module, optimizer, engine, rank=0, world_size=1)
    mp.spawn(worker, args=(free_ports(1)[0], str(tmp_path), method), nprocs=WORKERS)
    start = student(method).state_dict()
    for stage in range(4):
        state = torch.load(tmp_path / f"zero{stage}.pt", weights_only=True)
        assert state.keys() == module.state_dict().keys()
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=5e-6, msg=f"ZeRO-{stage} {name}")
            assert not torch.equal(tensor, start[name]), f"{name} was not trained"


def test_the_users_json_is_merged_over_ours(tmp_path: Path) -> None:
    path = tmp_path / "user.json"
    path.write_text('{"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": true}')
    user = read_user_config(str(path))
    settings = deepspeed_config(CONFIG, world_size=2, zero=2, autocast=torch.bfloat16, user=user)
    assert settings["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert settings["wall_clock_breakdown"] is True
    assert settings["gradient_clipping"] == 1.0
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert settings["train_micro_batch_size_per_gpu"] == 16


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"zero_optimization": {"stage": 3}}', "the ZeRO stage is set by --zero"),
        ('{"optimizer": {}}', "'optimizer' is set by the run's own flags"),
    ],
)
def test_a_bad_deepspeed_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "user.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_user_config(str(path))
