"""A server that is away, slow, failing or refusing: what waiting can help is waited for, the rest is told at once."""

import logging
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable
from ray_learngene.io.retry import Retry
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.store import Store
from tests.store.folders import contents, make_folder, one_line
from tests.store.proxy import Fault, Proxy, Request

BIG = bytes(range(256)) * 4096 * 12  # more than a chunk: pyarrow uploads it in parts, and reads it in ranges


@pytest.fixture
def uri(s3_env: Callable[[], str], proxy: Proxy) -> str:
    return f"{s3_env()}/store"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "folder", {"model.safetensors": BIG, "config.json": b"{}", "empty.txt": b""})


def every_other(fault: Fault) -> Callable[[Request], Fault | None]:
    """Each different request fails the first time, and works when it is made again."""
    seen: set[tuple[str, str]] = set()
    lock = threading.Lock()

    def first(request: Request) -> Fault | None:
        # Ids of uploads and probes are new every time: what counts is what is asked of which kind of object.
        key = request.method, request.path.split("?")[0].rsplit("/", 1)[-1][:6]
        with lock:
            new = key not in seen
            seen.add(key)
        return fault if new else None

    return first


@pytest.mark.parametrize("fault", ["refuse", "cut", "lose", 503])
def test_everything_survives_that_every_request_fails_once(
    uri: str, proxy: Proxy, folder: Path, tmp_path: Path, fault: Fault
) -> None:
    proxy.fault = every_other(fault)
    store = Store(uri)
    manifest = store.publish("descendant", "first/a", folder, {"row": {"top1": 1.0}})
    assert store.manifest("descendant", "first/a") == manifest
    assert [entry.name for entry in store.entries()] == ["first/a"]
    assert contents(store.download("descendant", "first/a", tmp_path / "out")) == contents(folder)
    with pytest.raises(UserError, match="already taken"):
        store.publish("descendant", "first/a", folder, {})
    checkpoints = StoreCheckpoints(store, "run/state")
    for epoch in (b"1", b"2"):
        checkpoints.save(lambda place, epoch=epoch: make_folder(place, {"state.safetensors": epoch}), {})  # type: ignore[misc]
    with checkpoints.latest() as found:
        assert found is not None and contents(found) == {"state.safetensors": b"2"}
    checkpoints.remove()
    assert store.manifests("checkpoint") == []


def test_a_server_that_never_answers_is_asked_again(uri: str, proxy: Proxy, folder: Path) -> None:
    objects = Store(uri).objects
    objects.put("opened", b"")
    uses: list[Callable[[], object]] = [
        lambda: objects.put("small", b"{}"),
        lambda: objects.read("small"),
        lambda: objects.upload(folder / "model.safetensors", "big"),
        lambda: b"".join(objects.chunks("big", 0)),
        lambda: objects.look(""),
    ]
    for use in uses:
        first = len(proxy.requests)
        proxy.fault = lambda request, first=first: "hang" if request.number == first else None  # type: ignore[misc]
        use()
    proxy.fault = lambda request: None
    assert objects.read("small") == b"{}"
    assert objects.read("big") == BIG


def test_an_outage_is_told_once_and_its_end(
    uri: str, proxy: Proxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(uri)
    store.write_text("a.txt", "1")
    down = 12
    first = len(proxy.requests)
    proxy.fault = lambda request: "refuse" if request.number - first < down else None
    with caplog.at_level(logging.WARNING, "ray_learngene"):
        assert store.read_text("a.txt") == "1"
    waiting, over = caplog.messages
    assert waiting.startswith(f"no answer from the S3 server {proxy.endpoint.removeprefix('http://')} for {uri}")
    assert waiting.endswith("waiting up to 300 s for it")
    assert over == "the storage answers again"


def test_patience_ends(uri: str, proxy: Proxy, folder: Path) -> None:
    store = Store(uri)
    store.objects.open()
    store.objects.retry = Retry(0.2)
    proxy.fault = lambda request: 503
    for use in (
        lambda: store.publish("learngene", "a", folder, {}),
        lambda: store.read_text("a.txt"),
        lambda: store.write_text("a.txt", "x"),
        lambda: store.create_text("a.txt", "x"),
        lambda: store.entries(),
        lambda: store.remove("learngene", "a"),
    ):
        with pytest.raises(Unavailable, match="is overloaded or failing") as error:
            use()
        one_line(error)


@pytest.mark.parametrize("fault", ["refuse", "hang"])
def test_the_check_of_a_command_asks_a_silent_server_once(uri: str, proxy: Proxy, fault: Fault) -> None:
    proxy.fault = lambda request: fault
    with pytest.raises(Unavailable):
        Store(uri).check(write=True)
    assert len(proxy.requests) <= 2


@pytest.mark.parametrize("status", [429, 503])
def test_the_check_of_a_command_waits_for_a_busy_server(uri: str, proxy: Proxy, status: int) -> None:
    proxy.fault = lambda request: status if request.number in (0, 2) else None
    Store(uri).check(write=True)
    proxy.fault = lambda request: status
    with pytest.raises(Unavailable, match="is overloaded or failing"):
        Store(uri, retry_seconds=0.2).check(write=True)


ERROR = "<Error><Code>{}</Code><Message>said the server</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", "access to s3://.* is denied"),
        (403, "InvalidAccessKeyId", "does not accept the credentials"),
        (400, "ExpiredToken", "the credentials for s3://.* have expired: renew them"),
        (403, "RequestTimeTooSkewed", "set the time"),
        (404, "NoSuchBucket", "the bucket of s3://.* does not exist"),
        (507, "InsufficientStorage", "has no space left"),
    ],
)
def test_what_waiting_cannot_help_is_told_at_once(
    uri: str, proxy: Proxy, folder: Path, tmp_path: Path, status: int, code: str, message: str
) -> None:
    store = Store(uri)
    store.publish("learngene", "a", folder, {})
    uses: list[Callable[[], object]] = [
        lambda: store.manifest("learngene", "a"),
        lambda: store.publish("learngene", "b", folder, {}),
        lambda: store.publish("learngene", "a", folder, {}, overwrite=True),
        lambda: store.download("learngene", "a", tmp_path / "out"),
        lambda: store.write_text("a.txt", "x"),
        lambda: store.entries(),
    ]
    for use in uses:
        proxy.fault, proxy.body = lambda request: status, ERROR.format(code).encode()
        before = len(proxy.requests)
        with pytest.raises(UserError, match=message) as error:
            use()
        one_line(error)
        assert not isinstance(error.value, Unavailable)
        assert len(proxy.requests) - before <= 20
        proxy.fault = lambda request: None
    assert not (tmp_path / "out").exists()


def test_a_refused_upload_leaves_nothing_behind(uri: str, proxy: Proxy, folder: Path) -> None:
    store = Store(uri)
    proxy.fault = lambda request: 403 if request.method == "PUT" and "config.json" in request.path else None
    proxy.body = ERROR.format("AccessDenied").encode()
    with pytest.raises(UserError, match="is denied"):
        store.publish("learngene", "a", folder, {})
    assert store.objects.find("learngenes") == []
    assert store.objects.find("index") == []


def test_rays_own_storage_is_as_patient(uri: str, proxy: Proxy) -> None:
    path, storage = Store(uri, retry_seconds=60).ray_storage("run")
    storage = pickle.loads(pickle.dumps(storage))  # as Ray sends it to its workers
    assert isinstance(storage, pyarrow.fs.S3FileSystem)
    first = len(proxy.requests)
    proxy.fault = lambda request: 503 if request.number - first < 3 else None
    with storage.open_output_stream(f"{path}/run/state.json") as stream:
        stream.write(b"{}")
    assert Store(uri).read_text("runs/run/state.json") == "{}"


def test_a_server_that_drips_does_not_answer(uri: str, proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    Store(uri).publish("learngene", "a", folder, {})
    proxy.fault = lambda request: "drip"
    for use in (
        lambda store: store.objects.find(""),
        lambda store: store.manifest("learngene", "a"),
        lambda store: store.objects.put("x", b"x" * 2**20),
    ):
        with pytest.raises(Unavailable, match="no answer from the S3 server"):
            use(Store(uri, retry_seconds=0))
    proxy.fault = lambda request: "drip" if request.path.endswith("model.safetensors") else None
    with pytest.raises(Unavailable, match="no answer from the S3 server"):
        Store(uri, retry_seconds=0).download("learngene", "a", tmp_path / "out")
