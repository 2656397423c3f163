"""A proxy before the S3 server, and what tests of the store use."""

from collections.abc import Callable, Iterator

import pytest

from ray_learngene.io import ray_filesystems, retry, s3_settings
from tests.conftest import S3Server
from tests.store.conftest import files, folder, store
from tests.store.proxy import Proxy

__all__ = ["files", "folder", "patient_proxy", "proxy", "store"]


@pytest.fixture
def proxy(s3_env: Callable[[], str], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that everything goes through, and pauses short enough for a test."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(retry, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(s3_settings, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(s3_settings, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(ray_filesystems, "ATTEMPTS", 1)
    made = Proxy(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()


@pytest.fixture
def patient_proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The same, for tests whose every answer counts: a busy machine is no silent server."""
    monkeypatch.setattr(s3_settings, "REQUEST_SECONDS", 100)
    return proxy
