"""A GPU that a process sees is not always its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ray_learngene.config import AncestryConfig
from ray_learngene.data.batch import Finish
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.models.device import gpu_allowed, resolve_device

ROOT = Path(__file__).parents[2]
# Ray's GPUs are numbers that it is told; which of its workers compute on theirs can be seen without any.
DRIVER = """
import ray
import torch

from ray_learngene.cluster.session import use_assigned
from ray_learngene.models.device import resolve_device


def device():
    torch.cuda.is_available = lambda: True
    use_assigned()
    return resolve_device().type


ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print([ray.get(ray.remote(num_cpus=1, num_gpus=gpus)(device).remote()) for gpus in (0, 1, 0.5)])
"""


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("a_gpu")
def test_a_process_that_may_not_use_a_gpu_computes_on_the_cpu() -> None:
    mean = std = (0.5,) * 3
    assert resolve_device().type == "cuda" and Finish(mean, std).pins
    with gpu_allowed(False):
        finish = Finish(mean, std)
        assert resolve_device() == finish.device == torch.device("cpu") and not finish.pins
    with gpu_allowed(None):
        assert resolve_device().type == "cuda"


@pytest.mark.usefixtures("a_gpu")
def test_a_run_in_this_process_that_asks_for_no_gpu_has_none_and_the_next_may(tmp_path: Path) -> None:
    config = AncestryConfig(
        **{"data": "digits", "name": "one", "store": str(tmp_path), "workers": 0, "use_gpu": False, "epochs": 0},
        **{"model": "deit_tiny_patch16_224", "batch_size": 64, "warmup_epochs": 0},
        model_args={"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 1},
    )
    train_ancestry(config)  # on a GPU, torch would say that there is none
    assert resolve_device().type == "cuda"


@pytest.mark.hosts  # it starts a Ray of its own, with two GPUs
def test_a_ray_worker_computes_on_a_gpu_only_if_it_was_given_one() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", DRIVER]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900, env=environment)
    assert said.stdout == "['cpu', 'cuda', 'cuda']\n", said.stderr
