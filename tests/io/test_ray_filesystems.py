"""Ray's own state takes pyarrow's clients, with the settings of the store's; what they cannot share is said."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.options import VARIABLE
from ray_learngene.io.ray_filesystems import ray_filesystem, require_agreement
from ray_learngene.store.store import Store
from tests.conftest import S3Server, free_ports
from tests.store.folders import contents, one_line


def options(monkeypatch: pytest.MonkeyPatch, place: str, **given: Any) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({place: given}))


def refused(uri: str) -> str:
    with pytest.raises(UserError) as error:
        ray_filesystem(uri)
    return one_line(error)


def test_credentials_that_pyarrow_cannot_renew_are_refused(
    s3_env: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    config = tmp_path / "config"
    config.write_text(
        "[profile base]\naws_access_key_id = a\naws_secret_access_key = b\n"
        "[profile lab]\nrole_arn = arn:aws:iam::1:role/lab\nsource_profile = base\n"
        "[profile program]\ncredential_process = no-such-program\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert "pyarrow, which keeps Ray's state and reads images on S3, cannot renew credentials (assume-role)" in refused(
        uri
    )
    options(monkeypatch, "s3://", profile="lab")
    assert "cannot renew credentials (profile lab): set AWS_PROFILE" in refused(uri)
    options(monkeypatch, "s3://", profile="base")  # keys that do not expire are handed over
    assert ray_filesystem(uri)[0].type_name == "s3"


def test_settings_that_pyarrow_does_not_know_are_refused(
    s3_env: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    options(monkeypatch, "s3://", client_kwargs={"verify": False})
    assert "pyarrow cannot be told verify: false: name the server's certificate in AWS_CA_BUNDLE" in refused(uri)
    options(monkeypatch, "gs://", token=str(tmp_path / "key.json"))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    assert "reads GOOGLE_APPLICATION_CREDENTIALS, not the option token: set it to" in refused("gs://bucket/store")
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert "the storage account is not named: set AZURE_STORAGE_ACCOUNT_NAME" in refused("abfs://box/store")


def test_a_place_that_only_the_stores_client_reaches_is_one_line(
    s3_env: Callable[[], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = s3_env()
    options(monkeypatch, "s3://", s3_additional_kwargs={"ServerSideEncryption": "AES256"})
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        require_agreement(uri, *ray_filesystem(uri))
    assert "written without s3_additional_kwargs, which pyarrow does not know" in caplog.text
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(
        UserError, match=f"the store's client reaches {uri}, and pyarrow, .* does not .no answer"
    ) as error:
        require_agreement(uri, *ray_filesystem(uri))
    one_line(error)


@pytest.fixture
def tls_server(s3_server: S3Server, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The S3 server behind a certificate that no public authority has signed: its URL, and the certificate."""
    certificate, key = tmp_path / "own-ca.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    parts = urlsplit(s3_server.endpoint)

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(2**16):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection((str(parts.hostname), int(parts.port or 80))) as server,
        ):
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}", certificate
    listener.close()


def test_a_server_with_a_certificate_of_the_companys_own(
    s3_env: Callable[[], str],
    tls_server: tuple[str, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, (endpoint, certificate) = f"{s3_env()}/store", tls_server
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(
        UserError, match="the certificate of .* is not trusted: name its authority in AWS_CA_BUNDLE"
    ) as error:
        Store(uri, retry_seconds=0).check(write=True)
    one_line(error)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    store = Store(uri)
    store.publish("learngene", "a", folder, {})
    assert contents(store.download("learngene", "a", tmp_path / "out")) == contents(folder)
    path, storage = store.ray_storage("run")
    with pickle.loads(pickle.dumps(storage)).open_output_stream(f"{path}/run/state.json") as stream:
        stream.write(b"{}")
    assert store.read_text("runs/run/state.json") == "{}"
