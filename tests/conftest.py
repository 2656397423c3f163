"""Shared fixtures: one thread and no network for every test, and a real S3 server for the store."""

import os
import tempfile
import uuid

# Before torch, ray or deepspeed are imported anywhere: they read these once. Compiled code is of this process alone:
# what another that was killed left half-written would not load.
os.environ.update(
    TORCHINDUCTOR_CACHE_DIR=tempfile.mkdtemp(prefix="torchinductor-"),
    OMP_NUM_THREADS="1",
    RAY_AUTH_MODE="disabled",
    DS_ACCELERATOR="cpu",
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    AWS_EC2_METADATA_DISABLED="true",
)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import ray_learngene.torchvision_cpu  # noqa: F401  (tests import plain timm)
from ray_learngene.cli.output import shown_log
from tests.clouds import Cloud, running_azurite, running_gcs
from tests.s3_server import S3Server, free_ports, running_s3_server

__all__ = ["S3Server", "free_ports"]

RAY_JOBS = "ray_jobs"

# No test fails for the time it took. In CI (the usual variable) the same examples in every run.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("tests")

torch.set_num_threads(1)
torch.manual_seed(0)  # torch seeds a process at random; this is for what test modules draw when they are imported


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same draws in every run, whichever other tests run: a bound on rounding is never missed now and then."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on Ray: they take longest, and mostly wait for processes that start."""
    items.sort(key=lambda item: item.path.parent.name != RAY_JOBS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, and all tests on Ray, which share a cluster, in another."""
    from xdist.scheduler import LoadFileScheduling

    class OneCluster(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return RAY_JOBS if f"/{RAY_JOBS}/" in file else file

    return OneCluster(config, log)


@pytest.fixture(scope="session", autouse=True)
def log_is_shown() -> Iterator[None]:
    """Tests read what a terminal would show."""
    with shown_log():
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS with authentication on loopback, for the whole session."""
    with running_s3_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_env(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server, tmp_path: Path) -> Callable[[], str]:
    """Point the standard AWS variables at the server; the value makes the URI of a fresh bucket."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-aws-file"))
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return lambda: f"s3://{s3_server.new_bucket()}"


@pytest.fixture(scope="session")
def gs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with running_gcs(tmp_path_factory.mktemp("gcs")) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def abfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as cloud:
        yield cloud


@pytest.fixture(
    params=[
        *("local", "s3", "memory"),
        *(pytest.param(scheme, marks=pytest.mark.clouds) for scheme in ("gs", "abfs")),
    ]
)
def store_uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh, empty store: a local folder, a bucket prefix, and the same below other schemes."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/store"
    if request.param == "s3":
        new_bucket: Callable[[], str] = request.getfixturevalue("s3_env")
        return f"{new_bucket()}/team/store"
    cloud: Cloud = request.getfixturevalue(f"{request.param}_server")
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    return f"{cloud.new_place()}/team/store"
