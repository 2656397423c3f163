"""The check before any work, and what goes wrong."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.cli.main import main
from ray_learngene.errors import UserError
from ray_learngene.io.errors import explain
from ray_learngene.store.store import Store
from tests.conftest import S3Server, free_ports
from tests.s3_recorder import permissions
from tests.store.folders import contents, one_line
from tests.store.proxy import Fault, Proxy, Request


def test_a_good_store_passes_the_check_and_keeps_no_trace(store: Store, store_uri: str) -> None:
    store.write_text("a.txt", "x")
    store.check(write=True)
    store.check(write=False)
    assert store.objects.find("") == ["a.txt"]


def test_a_missing_local_store_is_created_by_its_first_object(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none" / "below"))
    store.check(write=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="there is no store at .*none/below"):
        store.check(write=False)
    store.write_text("a.txt", "x")
    store.check(write=False)


def test_a_file_in_the_way_of_a_local_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot be a folder: a file stands in its way") as error:
            Store(str(tmp_path / path)).check(write=True)
        one_line(error)


def every_use(store: Store, folder: Path, out: Path) -> list[Callable[[], Any]]:
    return [
        lambda: store.check(write=False),
        lambda: store.check(write=True),
        lambda: store.exists("learngene", "a"),
        lambda: store.manifest("learngene", "a"),
        lambda: store.manifests("learngene"),
        lambda: store.publish("learngene", "a", folder, {}),
        lambda: store.publish("learngene", "a", folder, {}, overwrite=True),
        lambda: store.download("learngene", "a", out),
        lambda: store.write_text("a.txt", "x"),
        lambda: store.create_text("a.txt", "x"),
        lambda: store.read_text("a.txt"),
        lambda: store.ray_storage("a"),
    ]


def test_a_missing_bucket_is_named_and_never_created(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path
) -> None:
    for n in range(len(every_use(Store("s3://x"), folder, tmp_path))):
        store = Store("s3://no-such-bucket-here/prefix")
        with pytest.raises(UserError, match="the bucket of s3://no-such-bucket-here.* does not exist") as error:
            every_use(store, folder, tmp_path / "out")[n]()
        one_line(error)
    buckets = s3_server.client().list_buckets()["Buckets"]
    assert "no-such-bucket-here" not in [bucket["Name"] for bucket in buckets]


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_one_line_without_them(
    s3_env: Callable[[], str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    uri = s3_env()
    monkeypatch.setenv(variable, "wrong-and-private")
    for n in range(len(every_use(Store(uri), folder, tmp_path))):
        with pytest.raises(UserError, match=f"does not accept the credentials for {uri}.*AWS_ACCESS_KEY_ID") as error:
            every_use(Store(uri), folder, tmp_path / "out")[n]()
        text = one_line(error)
        assert "wrong-and-private" not in text
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text


def test_a_key_that_may_only_read_reads_and_is_refused_the_rest(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    Store(uri).publish("learngene", "a", folder, {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret)
    store = Store(uri)
    store.check(write=False)
    assert contents(store.download("learngene", "a", tmp_path / "out")) == contents(folder)
    for write in (
        lambda: store.check(write=True),
        lambda: store.publish("learngene", "b", folder, {}),
        lambda: store.publish("learngene", "a", folder, {}, overwrite=True),
        lambda: store.create_text("a.txt", "x"),
        lambda: store.write_text("a.txt", "x"),
        lambda: store.objects.delete("store.json"),
    ):
        with pytest.raises(UserError, match=f"access to {uri}/.* is denied: check AWS_ACCESS_KEY_ID") as error:
            write()
        assert "never-printed" not in one_line(error)


@pytest.mark.parametrize(
    "right", ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucketMultipartUploads"]
)
def test_a_missing_right_is_named_before_anything_is_written(
    s3_env: Callable[[], str],
    patient_proxy: Proxy,
    folder: Path,
    tmp_path: Path,
    right: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"{s3_env()}/store"
    store = Store(uri)
    store.publish("learngene", "a", folder, {})
    there = store.objects.find("")
    patient_proxy.body = b"<Error><Code>AccessDenied</Code></Error>"

    def refused(request: Request) -> Fault | None:
        needed = permissions(request.method, request.path, b"<Key>x</Key>")
        return 403 if right in [one.action for one in needed] else None

    patient_proxy.fault = refused
    said = f"access to {uri}.* is denied: check AWS_ACCESS_KEY_ID .*, and that this key may {right} there"
    if right == "s3:ListBucketMultipartUploads":
        assert main(["gc", "--store", uri]) == 0
        assert re.search(f"incomplete uploads are not looked for: {said}", capsys.readouterr().err)
    else:
        with pytest.raises(UserError, match=said) as error:
            Store(uri).check(write=True)
        one_line(error)
    if right in ("s3:ListBucket", "s3:GetObject"):
        assert main(["list", "--store", uri]) == 2
        assert re.search(said, capsys.readouterr().err)
    pulled = ["pull", "learngenes/a", "--store", uri, "--out", str(tmp_path / "out")]
    assert main(pulled) == (2 if right == "s3:GetObject" else 0)
    assert (tmp_path / "out").exists() == (right != "s3:GetObject")
    patient_proxy.fault = lambda request: None
    left = [path for path in store.objects.find("") if path not in there]
    assert [path[:7] for path in left] == ([".check-"] if right == "s3:DeleteObject" else [])


REDIRECTS = [
    (
        301,
        b"<Error><Code>PermanentRedirect</Code><Endpoint>elsewhere</Endpoint></Error>",
        "another region: set AWS_REGION",
    ),
    (400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>", "another region: set AWS_REGION"),
    (301, b"", "elsewhere: set AWS_REGION to the bucket's region, or correct AWS_ENDPOINT_URL"),
    (307, b"<Error><Code>TemporaryRedirect</Code></Error>", "elsewhere: set AWS_REGION"),
]


@pytest.mark.parametrize(
    ("status", "body", "message"), REDIRECTS, ids=[f"{status}-{len(body)}" for status, body, _ in REDIRECTS]
)
def test_a_bucket_of_another_region_is_one_line(
    s3_env: Callable[[], str], patient_proxy: Proxy, folder: Path, status: int, body: bytes, message: str
) -> None:
    store = Store(s3_env())
    patient_proxy.body, patient_proxy.fault = body, lambda request: status
    for use in (lambda: store.check(write=False), lambda: store.publish("learngene", "a", folder, {})):
        with pytest.raises(UserError, match=message) as error:
            use()
        one_line(error)
    assert len(patient_proxy.requests) <= 8  # and not one for each answer to the question where the bucket is


def test_a_region_that_the_server_names_is_used_or_told(s3_env: Callable[[], str], patient_proxy: Proxy) -> None:
    store = Store(s3_env())
    patient_proxy.body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
    patient_proxy.fault = lambda request: None if b"/eu-west-1/s3/" in request.head else 400
    store.objects.put("a", b"x")
    assert store.objects.read("a") == b"x"
    patient_proxy.fault = lambda request: 400
    with pytest.raises(UserError, match="in another region: set AWS_REGION=eu-west-1$"):
        Store(store.uri).check(write=False)


def test_the_hub_is_not_blamed_for_being_left_alone() -> None:
    with pytest.raises(UserError, match="is not asked for hf://datasets/someone/thing while HF_HUB_OFFLINE is set"):
        Store("hf://datasets/someone/thing").check(write=False)  # as in all tests


def test_absent_credentials_are_explained(s3_env: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3_env()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=f"no S3 credentials for {uri}: set AWS_ACCESS_KEY_ID"):
        Store(uri).check(write=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="AWS_PROFILE names a profile that does not exist"):
        Store(uri).check(write=False)


def test_a_profile_gives_endpoint_region_and_keys(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_env()
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    config, keys = tmp_path / "aws-config", tmp_path / "aws-keys"
    config.write_text(f"[profile lab]\nregion = eu-west-1\nendpoint_url = {s3_server.endpoint}\n")
    keys.write_text(f"[lab]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = Store(uri)
    store.publish("learngene", "a", folder, {})
    assert contents(store.download("learngene", "a", tmp_path / "out")) == contents(folder)


def test_the_endpoint_for_s3_alone_comes_first(s3_env: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3_env()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    Store(uri).check(write=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1:9000")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL must begin with http:// or https://"):
        Store(uri).check(write=True)


@pytest.mark.parametrize("endpoint", ["http://my_minio:9000", "http://", "http://local host:9000", "http://[::1:9000"])
def test_an_endpoint_that_is_no_url_is_one_line(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL is no URL of a server") as error:
        Store("s3://bucket/prefix").check(write=False)
    one_line(error)


def test_a_missing_certificate_bundle_is_named(s3_env: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3_env()
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/bundle.pem")
    with pytest.raises(UserError, match="AWS_CA_BUNDLE .* names a file that does not exist"):
        Store(uri).check(write=False)


def test_an_unreachable_endpoint_is_named(
    s3_env: Callable[[], str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
    message = f"no answer from the S3 server {address} for s3://bucket/prefix.*AWS_ENDPOINT_URL"
    with pytest.raises(UserError, match=message) as error:
        Store("s3://bucket/prefix").check(write=False)
    one_line(error)
    with pytest.raises(UserError, match=message):
        Store("s3://bucket/prefix", retry_seconds=0).publish("learngene", "a", folder, {})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the disk of /a is full"),
        (PermissionError(13, "Permission denied"), "no permission for /a"),
        (OSError(30, "Read-only file system"), "no permission for /a"),
        (OSError(21, "Is a directory"), "/a is a folder: name a file"),
        (OSError(39, "Directory not empty"), "a folder that is not empty stands at /a"),
        (OSError("AWS Error SLOW_DOWN during PutObject operation: x"), "overloaded or failing"),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during x"), "overloaded or failing"),
        (OSError("AWS Error UNKNOWN (HTTP status 301) during x"), "set AWS_REGION"),
        (OSError("AWS Error INVALID_BUCKET_NAME during PutObject operation: x"), "the bucket of /a does not exist"),
        (OSError("two\nlines"), "cannot be read or written: two lines"),
        (OSError(), "cannot be read or written: OSError"),
    ],
)
def test_errors_are_explained(error: OSError, message: str) -> None:
    explained = explain(error, "/a")
    assert message in str(explained)
    assert "\n" not in str(explained)


def test_azures_codes_are_an_enumeration() -> None:
    class Refused(OSError):
        error_code = Enum("StorageErrorCode", {"FAILED": "AuthenticationFailed"}, type=str)["FAILED"]
        status_code = 403

    assert "Azure Storage does not accept the credentials" in str(explain(Refused(), "abfs://a/b"))


def test_the_store_imports_without_torch_and_ray() -> None:
    slow = "torch", "ray", "timm", "botocore.session"
    program = f"import sys, ray_learngene.store; print([m for m in {slow} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900, check=True)
    assert ran.stdout.strip() == "[]"
