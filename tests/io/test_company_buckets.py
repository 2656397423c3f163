"""Buckets as companies have them: public ones, profiles, options, keys that expire, a certificate of their own."""

from __future__ import annotations

import json
import os
import pickle
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.cli.main import main
from ray_learngene.config import DataConfig, PullConfig, load_config
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable
from ray_learngene.io.options import VARIABLE, options_for
from ray_learngene.io.retry import Retry
from ray_learngene.store.store import Store
from tests.conftest import S3Server
from tests.data.image_files import write_class_folders, write_parquet
from tests.s3_recorder import recorded
from tests.s3_server import BY_NAME, PUBLIC
from tests.store.folders import contents, one_line
from tests.store.proxy import Proxy

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(autouse=True)
def no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # what a test sets is undone


def options(monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"s3://": given}))


@pytest.fixture(scope="module")
def buckets(s3_server: S3Server) -> None:
    for bucket in (PUBLIC, BY_NAME):
        s3_server.new_bucket(bucket)


def test_a_public_bucket_is_pulled_from_without_keys(
    s3_env: Callable[[], str],
    buckets: None,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_class_folders(tmp_path / "images", {"cat": 2, "dog": 2})
    for bucket in (PUBLIC, BY_NAME):
        store = Store(f"s3://{bucket}/store")
        store.publish("learngene", "a", folder, {})
        store.objects.upload(write_parquet(tmp_path / "x.parquet", [0, 1, 0, 1]), "images/train-0.parquet")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for bucket in (PUBLIC, BY_NAME):  # the second without the right to list
        arguments = ["pull", "learngenes/a", "--store", f"s3://{bucket}/store", "--out", str(tmp_path / bucket)]
        assert main(arguments) == 0
        assert contents(tmp_path / bucket) == contents(folder)
    assert [entry.name for entry in Store(f"s3://{PUBLIC}/store").entries()] == ["a"]
    sets = open_image_sets(DataConfig(data=f"s3://{PUBLIC}/store/images", holdout=0.5))
    assert len(sets.train) == 2
    for use in (
        lambda: Store(f"s3://{PUBLIC}/store").check(write=True),
        lambda: Store(f"s3://{PUBLIC}/store").publish("learngene", "b", folder, {}),
    ):
        with pytest.raises(UserError, match="no S3 credentials for s3://public.*: set AWS_ACCESS_KEY_ID") as error:
            use()
        one_line(error)
    for command in (["list"], ["pull", "--max-params", "5M", "--out", str(tmp_path / "none")], ["gc"]):
        capsys.readouterr()
        assert main([*command, "--store", f"s3://{BY_NAME}/store"]) == 2
        said = capsys.readouterr().err
        assert f"not listed: pull by name (learngene pull KIND/NAME --store s3://{BY_NAME}/store)" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_reading_asks_for_no_more_than_reading(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_env()}/store"
    Store(uri).publish("learngene", "a", folder, {})
    with recorded(s3_server.endpoint) as asked:
        monkeypatch.setenv("AWS_ENDPOINT_URL", asked.endpoint)
        Store(uri).download("learngene", "a", tmp_path / "out")
    assert {request.action for request in asked.requests} == {"s3:GetObject"}


def test_options_come_from_a_file_or_the_flag_and_hold_for_what_begins_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "storage.yaml"
    file.write_text("s3://team: {profile: lab}\ns3a://team/public: {anon: true}\ngs://: {project: x}\n")
    config = load_config(PullConfig, {"storage_options": str(file)})
    assert load_config(PullConfig, {"storage_options": json.dumps(config.storage_options)}) == config
    assert options_for("s3://team/store") == options_for("s3://team") == {"profile": "lab"}
    assert options_for("s3://team/public/x") == {"anon": True}
    assert options_for("s3://team2") == options_for("memory://team") == {}
    assert options_for("gcs://bucket") == {"project": "x"}
    for wrong, message in (
        ("none.yaml", "no such file"),
        ("{s3: 1}", "write the beginning of a URI and its options"),
        ("{'s3://a': {secret: hidden}}", "secret is a secret"),
        ("{'s3://a': {client_kwargs: {aws_secret_access_key: hidden}}}", "is a secret"),
        ("{'s3://a': {endpoint_url: 'http://me:hidden@host'}}", "is a secret"),
        ("{'abfs://a': {connection_string: hidden}}", "is a secret"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_config(PullConfig, {"storage_options": wrong})
        assert "hidden" not in one_line(error)
    monkeypatch.setenv(VARIABLE, "{")
    with pytest.raises(UserError, match="is not JSON of the form"):
        Store("s3://bucket").check(write=False)


def test_a_profile_endpoint_and_region_of_the_options_come_first(
    s3_env: Callable[[], str], s3_server: S3Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_env()}/store"
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    keys = tmp_path / "keys"
    keys.write_text(f"[lab]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    options(monkeypatch, profile="lab", endpoint_url=s3_server.endpoint, client_kwargs={"region_name": "eu-west-1"})
    store = Store(uri)
    store.publish("learngene", "a", folder, {})
    path, storage = store.ray_storage("run")  # pyarrow gets the same
    assert storage is not None and storage.region == "eu-west-1"
    pickled = pickle.dumps(storage)
    assert s3_server.secret.encode() not in pickled
    with pickle.loads(pickled).open_output_stream(f"{path}/run/state.json") as stream:
        stream.write(b"{}")
    assert store.read_text("runs/run/state.json") == "{}"


def test_headers_of_encryption_and_requester_pays_are_sent(
    s3_env: Callable[[], str], s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_env()}/store"
    large = tmp_path / "large"
    large.write_bytes(bytes(9 * 2**20))
    with recorded(s3_server.endpoint) as asked:
        monkeypatch.setenv("AWS_ENDPOINT_URL", asked.endpoint)
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "a-key"}
        options(monkeypatch, requester_pays=True, s3_additional_kwargs=encryption)
        objects = Store(uri, retry_seconds=0).objects
        for write in (lambda: objects.put("a", b"x"), lambda: objects.upload(large, "large")):
            with pytest.raises(UserError):  # this server has no keys for it
                write()
        assert objects.read("none") is None
    first = dict(reversed(asked.headers))  # parts are of what the POST began
    for method in ("PUT", "POST"):
        assert first[method]["x-amz-server-side-encryption-aws-kms-key-id"] == "a-key"
    assert {headers.get("x-amz-request-payer") for _, headers in asked.headers} == {"requester"}


def test_keys_that_expire_during_a_run_are_read_again(
    proxy: Proxy, s3_env: Callable[[], str], s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_env()}/store"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    for name in KEYS:
        monkeypatch.delenv(name)
    keys = tmp_path / "keys"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    form = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    keys.write_text(form.format(s3_server.reader_key, s3_server.reader_secret))
    objects = Store(uri).objects
    assert objects.read("a") is None
    proxy.body = b"<Error><Code>ExpiredToken</Code></Error>"
    proxy.fault = lambda request: 400
    with pytest.raises(UserError, match="the credentials for .* have expired: renew them"):
        objects.read("a")
    keys.write_text(form.format(s3_server.access_key, s3_server.secret))
    first = len(proxy.requests)
    proxy.fault = lambda request: 400 if request.number == first else None
    objects.put("a", b"x")  # which the first key may not
    assert objects.read("a") == b"x"


def test_keys_that_expire_under_many_threads_are_read_again_for_all_of_them(
    patient_proxy: Proxy, s3_env: Callable[[], str], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_env()}/store"
    monkeypatch.setenv("AWS_ENDPOINT_URL", patient_proxy.endpoint)
    objects = Store(uri).objects
    names = [f"a{number}" for number in range(24)]
    objects.each(partial(objects.put, name, name.encode()) for name in names)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret)
    patient_proxy.body = b"<Error><Code>ExpiredToken</Code></Error>"
    old = f"Credential={s3_server.access_key}/".encode()
    patient_proxy.fault = lambda request: 400 if old in request.head else None
    assert objects.read_many(names) == [name.encode() for name in names]
    objects.retry = Retry(0)  # what is streamed is asked again, too
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    patient_proxy.fault = lambda request: 400
    with pytest.raises(Unavailable, match="expired during a request, and others were found: run the command again"):
        b"".join(objects.chunks("a0", 0))
    with pytest.raises(UserError, match="the credentials for .* have expired: renew them"):
        b"".join(objects.chunks("a0", 0))


def test_a_program_that_gives_keys_is_asked_again_when_they_run_out(
    s3_env: Callable[[], str], s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_env()}/store"
    for name in KEYS:
        monkeypatch.delenv(name)
    soon = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    program = tmp_path / "keys.py"
    program.write_text(
        f"#!{sys.executable}\nimport json, pathlib\n"
        f"asked = pathlib.Path({str(tmp_path / 'asked')!r}); first = not asked.exists(); asked.touch()\n"
        f"key, secret = {(s3_server.reader_key, s3_server.reader_secret)} if first else "
        f"{(s3_server.access_key, s3_server.secret)}\n"
        f"print(json.dumps(dict(Version=1, AccessKeyId=key, SecretAccessKey=secret, Expiration={soon!r})))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    store = Store(uri)
    store.objects.put("a", b"x")  # by the second key: the first runs out, and may only read
    assert store.objects.read("a") == b"x"
    assert os.path.exists(tmp_path / "asked")
