"""Large files in parts: whole and in order, whatever single requests do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io import multipart
from ray_learngene.io.objects import Objects
from tests.store.proxy import Proxy, Request

DATA = bytes(range(251)) * 40_000  # two parts, and 34 ranges of the size below


@pytest.fixture
def objects(s3_env: Callable[[], str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Objects:
    monkeypatch.setattr(multipart, "RANGE_BYTES", 300_000)
    monkeypatch.setattr(multipart, "PIECE_BYTES", 70_000)
    return Objects(f"{s3_env()}/store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(DATA)
    return path


def test_ranges_come_in_order_from_any_offset(objects: Objects, source: Path) -> None:
    objects.upload(source, "big")
    assert objects.incomplete_uploads() == []
    for offset in (0, 1, 300_000, 1_234_567, len(DATA) - 1, len(DATA), len(DATA) + 5):
        assert b"".join(objects.chunks("big", offset)) == DATA[offset:]
    objects.put("empty", b"")
    assert b"".join(objects.chunks("empty", 0)) == b""
    pieces = objects.chunks("big", 0)
    assert next(pieces) == DATA[:70_000]
    pieces.close()  # type: ignore[attr-defined]  # leaves nothing behind that waits


def test_a_range_that_breaks_off_goes_on_where_it_stopped(objects: Objects, source: Path, proxy: Proxy) -> None:
    objects.upload(source, "big")
    first = len(proxy.requests)
    proxy.fault = lambda request: "cut" if request.number < first + 20 else None
    assert b"".join(objects.chunks("big", 0)) == DATA
    assert len(proxy.requests) - first == 34 + 20


def test_a_lost_answer_does_not_upload_twice(objects: Objects, source: Path, proxy: Proxy) -> None:
    lost: list[Request] = []

    def lose(request: Request) -> str | None:
        if request.method == "POST" and "uploadId=" in request.path and not lost:
            lost.append(request)
            return "lose"
        return None

    proxy.fault = lose  # type: ignore[assignment]
    objects.upload(source, "big")
    parts = [request.number for request in proxy.requests if "partNumber=" in request.path]
    assert len(parts) >= 2 and max(parts) < lost[0].number, "no part is sent again once all were taken"
    assert objects.read("big") == DATA


def test_a_refused_part_leaves_no_incomplete_upload(objects: Objects, source: Path, proxy: Proxy) -> None:
    proxy.fault = lambda request: 403 if "partNumber=2" in request.path else None
    proxy.body = b"<Error><Code>AccessDenied</Code></Error>"
    with pytest.raises(UserError, match="access to .*big is denied"):
        objects.upload(source, "big")
    assert objects.incomplete_uploads() == [] and not objects.exists("big")
