"""One started Ray head, one bucket of a real S3 server, and what is made in it, for all files of this folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.config import AncestryConfig, DistillConfig, SweepConfig
from tests.conftest import S3Server, free_ports
from tests.s3_recorder import Recorder, recorded

ROOT = Path(__file__).parents[2]
QUICK = {
    "data": "digits",
    "batch_size": 128,
    "lr": 4e-3,
    "warmup_epochs": 0,
    "drop_path": 0.0,
    "hflip": 0.0,
    "scale": (0.9, 1.0),
}
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="package")
def recorder(s3_server: S3Server) -> Iterator[Recorder]:
    """Notes what all of these tests ask of the S3 server."""
    with recorded(s3_server.endpoint) as recorder:
        yield recorder


@pytest.fixture(scope="package")
def s3_store(s3_server: S3Server, recorder: Recorder) -> Iterator[str]:
    """A bucket, reached through the standard AWS variables, which Ray's processes inherit."""
    variables = {
        "AWS_ENDPOINT_URL": recorder.endpoint,
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    yield f"s3://{s3_server.new_bucket()}/store"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def start_head() -> tuple[subprocess.Popen[str], str, str] | None:
    """Start a head; returns its process, address and job server, or None if Ray gave up.

    Ray's own time limit for a start is half a minute, which a busy machine can miss.
    """
    gcs, dashboard, agent = free_ports(3)
    command = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2", "--num-gpus=0"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--disable-usage-stats", "--block"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # its default may belong to another cluster on this machine
    # Ray's workers yield to all other programs by default, and would starve on a busy machine.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    # a session of its own, so that all of the head's processes end with it
    process = subprocess.Popen(command, **options, env=environment, start_new_session=True)
    if any("Ray runtime started" in line for line in process.stdout):
        return process, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
    stop(process)
    return None


def stop(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # it ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="package")
def head(s3_store: str) -> Iterator[tuple[str, str]]:
    """Addresses of a started head: for drivers, and for job submission."""
    started = start_head() or start_head() or start_head()
    assert started, "ray start --head ended three times without starting"
    process, *addresses = started
    try:
        yield tuple(addresses)
    finally:
        stop(process)


@pytest.fixture(scope="module")
def connected(head: tuple[str, str]) -> Iterator[None]:
    """One connection for all tests of a file: tasks of one test find the process that served another's.

    A process that imports torch and timm costs more than what most of these tests train.
    """
    from ray_learngene.cluster.session import ray_cluster

    with ray_cluster(head[0]):
        yield


@pytest.fixture(scope="package")
def ancestry(s3_store: str) -> str:
    from ray_learngene.distillation.train_ancestry import train_ancestry

    size = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
    arguments = {**size, "class_token": False, "global_pool": "avg"}
    train_ancestry(
        AncestryConfig(
            **QUICK,
            name="digits",
            store=s3_store,
            workers=0,
            epochs=3,
            model="deit_tiny_patch16_224",
            model_args=arguments,
        )
    )
    return "store:ancestries/digits"


@pytest.fixture(scope="package")
def learngene(head: tuple[str, str], ancestry: str, s3_store: str) -> DistillConfig:
    from ray_learngene.distillation.distill import distill

    config = DistillConfig(
        **QUICK,
        name="digits",
        store=s3_store,
        ancestry=ancestry,
        preset="nano",
        method="sws:stages=1-1-1",
        epochs=3,
        workers=2,
        ema=0.9,
        mixup=0.2,
        address=head[0],
    )
    distill(config)
    return config


@pytest.fixture(scope="package")
def sweep_config(learngene: DistillConfig, head: tuple[str, str]) -> SweepConfig:
    return SweepConfig(
        **{**QUICK, "lr": 1e-3},
        name="digits",
        store=learngene.store,
        learngene="digits",
        budgets=("params<=60k", "params<=90k,latency<=1s"),
        arms=("sws", "scratch"),
        scratch="epochs",
        epochs=1,
        latency_threads=1,
        address=head[0],
        max_failures=0,
    )
