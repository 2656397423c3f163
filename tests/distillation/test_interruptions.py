"""One plain process that is told to end, has too little memory or no disk left: told in one line, and continued."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from ray_learngene.cluster.session import ray_cluster
from ray_learngene.config import AncestryConfig, OptimizationConfig
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.errors import RunError, UserError
from ray_learngene.store.store import Store
from ray_learngene.training.out_of_memory import is_out_of_memory, with_smaller_micro_batch

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
SETTINGS: dict[str, Any] = {
    "data": "digits",
    "model": "deit_tiny_patch16_224",
    "model_args": {**MODEL, "class_token": False, "global_pool": "avg"},
    "epochs": 2,
    "batch_size": 256,
    "warmup_epochs": 0,
    "drop_path": 0.0,
    "workers": 0,
}


def weights(store: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(Store(str(store)).read_bytes("ancestry", name, "model.safetensors"))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_of_its_very_step(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the loader's processes too. Each run continues what the one before it left."""
    store = tmp_path / "store"
    recipe = tmp_path / "recipe.yaml"
    # no checkpoint but the last is due, and the run is too long to end by itself before the signal
    recipe.write_text(
        json.dumps({**SETTINGS, "epochs": 400, "checkpoint_every": 10**6, "loader_workers": 1, "store": str(store)})
    )
    command = [sys.executable, "-m", "ray_learngene", "ancestry", "--config", str(recipe), "--name", "stopped"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def begun(step: int) -> tuple[subprocess.Popen[str], float]:
        """Start the run; returns it and its next epoch. It goes on from a step, if there is one."""
        process = subprocess.Popen(command, **options, start_new_session=True)
        assert process.stdout is not None
        assert not step or f"continuing from step {step} of 2000\n" in process.stdout
        return process, float(next(line for line in process.stdout if line.startswith("epoch")).split()[1])

    step = 0
    for number, status, how in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")):
        process, epoch = begun(step)
        assert epoch > step / 5, "it went on from there"
        os.killpg(process.pid, number)
        assert process.stdout is not None and process.stderr is not None
        said = process.stderr.read()
        process.stdout.close()
        assert process.wait() == status, said
        first, *last = said.splitlines()
        assert not last or first.startswith("learngene: writing checkpoints; Ctrl-C again")
        told = re.fullmatch(
            rf"learngene: {how} after (\d+) of 2,000 steps; what was begun is in a checkpoint, run the same command .*",
            [first, *last][-1],
        )
        assert told, said
        folder = Store(str(store)).download("checkpoint", "ancestry-stopped/state", tmp_path / f"checkpoint-{number}")
        assert json.loads((folder / "progress.json").read_text())["step"] == int(told[1]) > step
        step = int(told[1])
    process, epoch = begun(step)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert epoch > step / 5


LIMITED = """
import json, logging, resource, sys
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.config import AncestryConfig

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

def train(name):
    train_ancestry(AncestryConfig(**json.loads(sys.argv[1]), name=name))

train("enough")
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
train("little")
"""


@pytest.mark.slow
def test_a_micro_batch_that_does_not_fit_into_memory_is_halved(tmp_path: Path) -> None:
    wide = {**SETTINGS["model_args"], "embed_dim": 192, "depth": 3}
    settings = {**SETTINGS, "model_args": wide, "epochs": 1, "batch_size": 1024, "store": str(tmp_path), "hflip": 0.0}
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(settings), "400"],
        capture_output=True,
        text=True,
        timeout=900,
        # glibc gives memory back as it is freed, and takes none for threads: the limit is then the same in every run
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    assert ran.returncode == 0, ran.stderr
    assert "out of memory: continuing with micro-batches of 512 images (accumulation 2, the same" in ran.stdout
    enough, little = (Store(str(tmp_path)).manifest("ancestry", name).metadata for name in ("enough", "little"))
    assert enough["accumulation"] == 1 and little["accumulation"] > 1
    # a hundredth of AdamW's step of 1e-3, whose direction a gradient near its epsilon leaves to rounding
    for name, tensor in weights(tmp_path, "enough").items():
        torch.testing.assert_close(weights(tmp_path, "little")[name], tensor, rtol=0, atol=1e-5)


def test_what_is_out_of_memory_and_how_far_a_micro_batch_can_be_halved() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("another"))
    assert is_out_of_memory(RuntimeError("could not create a primitive")), "oneDNN, where memory ends within it"
    config = OptimizationConfig(batch_size=12)
    seen = []
    with pytest.raises(RunError, match="out of memory with a micro-batch of one image: choose --grad-checkpointing"):
        while True:
            config = with_smaller_micro_batch(config)
            seen.append(config.accumulation)
    assert seen == [2, 4, 8, 12]
    mixing = AncestryConfig(**{**SETTINGS, "batch_size": 12, "mixup": 0.5, "accumulation": 6}, name="x")
    with pytest.raises(RunError, match="one pair of images"):
        with_smaller_micro_batch(mixing)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]).returncode:
        pytest.skip("needs root to mount a small disk")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_training_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    config = AncestryConfig(**SETTINGS, store=str(tmp_path / "store"), name="filled", checkpoint_every=3)
    with pytest.raises(UserError, match="no space left in .*/small for a checkpoint: free some, or set TMPDIR"):
        train_ancestry(config)
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    train_ancestry(config)
    train_ancestry(config.model_copy(update={"name": "roomy"}))
    assert equal(weights(tmp_path / "store", "filled"), weights(tmp_path / "store", "roomy"))


def test_ray_is_not_started_on_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    with pytest.raises(UserError, match="0 MB are free in .*/small, where Ray keeps .* RAY_TMPDIR"), ray_cluster(None):
        pass


def test_skipped_images_are_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.data.image_files import write_class_folders

    for split in ("train", "val"):
        write_class_folders(tmp_path / "images" / split, {"a": 8, "b": 8})
    damaged = [tmp_path / "images" / name for name in ("train/a/1.jpg", "val/b/2.jpg")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-200])
    settings = {**SETTINGS, "data": str(tmp_path / "images"), "batch_size": 4, "store": str(tmp_path / "store")}
    with pytest.raises(UserError, match="--unreadable skip"):
        train_ancestry(AncestryConfig(**settings, name="fails", check_images="off"))
    for check in ("off", "full"):
        manifest = train_ancestry(AncestryConfig(**settings, name=check, check_images=check, unreadable="skip"))
        assert manifest.metadata["unreadable"] == ["a/1.jpg", "b/2.jpg"]
    output = "".join(capsys.readouterr())
    assert output.count("skipped 2 unreadable images: ") == 2 and output.count("going on with ") == 2


def test_a_killed_controller_of_ray_train_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from ray_learngene.distillation import ray_train

    class Killed:
        def __init__(self, *arguments: Any, **options: Any) -> None: ...

        def fit(self) -> None:
            raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray_train, "_Trainer", Killed)
    settings = {**SETTINGS, "workers": 1, "store": str(tmp_path)}
    config = AncestryConfig(**settings, name="led")
    task = SimpleNamespace(kind="ancestry", config=config, store=Store(str(tmp_path)))
    with pytest.raises(UserError, match="^the process that leads the workers was lost: run the same command again"):
        ray_train._fit(task, {}, use_gpu=False, callbacks=())  # type: ignore[arg-type]
