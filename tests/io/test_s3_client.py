"""s3fs as a store uses it: bounded waiting, whole answers, forks."""

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io import multipart
from ray_learngene.io.errors import Unavailable
from ray_learngene.io.objects import Objects
from ray_learngene.io.retry import Retry
from ray_learngene.io.s3 import S3Storage
from tests.store.proxy import Fault, Proxy

DATA = bytes(range(251)) * 40_000


@pytest.fixture
def objects(s3_env: Callable[[], str], proxy: Proxy) -> Objects:
    """Objects that are in use already."""
    objects = Objects(f"{s3_env()}/store")
    objects.put("small", b"0123456789")
    return objects


@pytest.mark.parametrize("fault", ["hang", "stall"])
@pytest.mark.parametrize("data", [b"{}", DATA], ids=["small", "large"])
def test_a_server_that_takes_no_body_is_given_up(
    objects: Objects, proxy: Proxy, tmp_path: Path, fault: Fault, data: bytes
) -> None:
    source = tmp_path / "file"
    source.write_bytes(data)
    proxy.fault = lambda request: fault if request.method == "PUT" else None
    objects.retry = Retry(0)
    for use in (lambda: objects.put("a", data), lambda: objects.upload(source, "a")):
        with pytest.raises(Unavailable, match="no answer from the S3 server"):
            use()
    objects.retry, proxy.fault = Retry(), lambda request: None
    assert not objects.exists("a")


def test_a_part_of_an_answer_is_never_the_whole(
    objects: Objects, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "file"
    source.write_bytes(DATA)
    objects.upload(source, "large")
    proxy.fault = lambda request: "half" if request.method == "GET" and "list-type" not in request.path else None
    monkeypatch.setattr(multipart, "RANGE_BYTES", 300_000)
    uses: list[tuple[bytes, Callable[[], bytes | None]]] = [
        (DATA, lambda: b"".join(objects.chunks("large", 0))),
        (b"0123456789", lambda: objects.read("small")),
    ]
    objects.retry = Retry(0)
    for _, read in uses:
        with pytest.raises(Unavailable):
            read()
    objects.retry = Retry()
    for expected, read in uses:
        first = len(proxy.requests)
        proxy.fault = lambda request, first=first: "half" if request.number < first + 8 else None  # type: ignore[misc]
        assert read() == expected and len(proxy.requests) > first + 8


def test_a_server_that_knows_no_ranges_is_not_taken_at_its_word(
    objects: Objects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Whole(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            with suppress(ConnectionError):  # the client may not read what it did not ask for
                self.wfile.write(DATA)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Whole) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        asked = Objects(objects.uri)
        assert asked.read("a") == b"".join(asked.chunks("a", 0)) == DATA
        with pytest.raises(UserError, match="sends other bytes of an object than those that were asked for"):
            next(asked.chunks("a", 1000))
        server.shutdown()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_the_clouds_say_to_retry_is_retried(
    s3_env: Callable[[], str], proxy: Proxy, tmp_path: Path, status: int
) -> None:
    objects = Objects(f"{s3_env()}/store")
    source = tmp_path / "file"
    source.write_bytes(DATA)
    uses: list[Callable[[], object]] = [
        lambda: objects.put("a", b"1"),
        lambda: objects.read("a"),
        lambda: objects.create("b", b"1"),
        lambda: objects.upload(source, "c"),
        lambda: b"".join(objects.chunks("c", 0)),
        lambda: objects.look(""),
        lambda: objects.delete("a"),
        lambda: objects.delete_many(["b", "c"]),
    ]
    for use in uses:
        first = len(proxy.requests)
        proxy.fault = lambda request, first=first: status if request.number < first + 2 else None  # type: ignore[misc]
        use()
        assert len(proxy.requests) > first + 2
    assert objects.find("") == ["store.json"]


@pytest.mark.parametrize("text", ["2026-11-29T22:15:42.123Z", "2026-11-29T22:15:42Z", "Sun, 29 Nov 2026 22:15:42 GMT"])
def test_dates_are_those_of_botocore(text: str) -> None:
    from botocore.utils import parse_timestamp

    from ray_learngene.io.s3_open import timestamp

    assert timestamp(text) == parse_timestamp(text)


def test_a_forked_process_opens_its_own_client(objects: Objects) -> None:
    program = """
import os, sys
from ray_learngene.io.objects import Objects
parent = Objects(sys.argv[1])
assert parent.read("small") == b"0123456789"
child = os.fork()
if not child:
    try:
        parent.read("small")
    except RuntimeError:
        os._exit(0 if Objects(sys.argv[1]).read("small") == b"0123456789" else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert parent.read("small") == b"0123456789"
"""
    ran = subprocess.run([sys.executable, "-c", program, objects.uri], capture_output=True, text=True, timeout=900)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_listing_without_a_next_page_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = S3Storage("bucket/store")
    page = {"Contents": [], "IsTruncated": True, "NextContinuationToken": "again"}  # as of a server that does not count
    monkeypatch.setitem(vars(storage), "client", SimpleNamespace(call=lambda method, **where: page))
    with pytest.raises(UserError, match="list_objects_v2 of bucket bucket: the server says that there is more"):
        list(storage.look("descendants"))
    del page["NextContinuationToken"]
    with pytest.raises(UserError, match="but not where"):
        list(storage.look("descendants"))
