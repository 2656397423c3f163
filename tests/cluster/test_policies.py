"""The IAM policies of cluster/ against what the store asks of a real S3 server; what Train and Tune ask of it is held
against them in tests/ray_jobs/test_the_iam_policy.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_learngene.cli.catalog import print_list
from ray_learngene.cli.gc import print_garbage
from ray_learngene.cli.pull import pull
from ray_learngene.config import GcConfig, ListConfig, PullConfig
from ray_learngene.store.store import Store
from tests.cluster.policy import refused
from tests.conftest import S3Server
from tests.s3_recorder import Request, recorded


def test_the_policies_allow_what_the_store_asks_for_and_no_more(
    s3_env: Callable[[], str], s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri = f"{s3_env()}/team/store"
    bucket, prefix = uri.removeprefix("s3://").split("/", 1)
    source = tmp_path / "source"
    source.mkdir()
    (source / "learngene.json").write_text("{}")
    (source / "learngene.safetensors").write_bytes(bytes(12 * 2**20))  # in parts
    with recorded(s3_server.endpoint) as writing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", writing.endpoint)
        store = Store(uri)
        store.check(write=True)
        store.publish("learngene", "x", source, {"metrics": {}})
        (source / "learngene.json").write_text('{"a": 1}')
        store.publish("learngene", "x", source, {"metrics": {}}, overwrite=True)
        store.publish("learngene", "y", source, {"metrics": {}})
        store.create_text("runs/z/settings.json", "{}")
        store.remove_tree("runs/z")
        store.remove("learngene", "y")
        print_garbage(GcConfig(store=uri, min_age="0m", force=True, delete=True))
    with recorded(s3_server.endpoint) as reading:
        monkeypatch.setenv("AWS_ENDPOINT_URL", reading.endpoint)
        print_list(ListConfig(store=uri))
        pull(PullConfig(store=uri, artefact="learngenes/x", out=str(tmp_path / "x")))
    assert {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"} <= {one[0] for one in writing.requests}
    assert {"s3:ListBucket", "s3:GetObject"} == {one.action for one in reading.requests}
    assert refused("store-policy.json", bucket, prefix, writing.requests | reading.requests) == []
    assert refused("pull-policy.json", bucket, prefix, reading.requests) == []
    beyond = [
        Request("s3:GetObject", f"{bucket}/team/other/x"),
        Request("s3:GetObject", f"{bucket}/{prefix}x"),
        Request("s3:PutObject", "another/team/store/x"),
        Request("s3:ListBucket", bucket, "team/"),
        Request("s3:DeleteBucket", bucket),
    ]
    assert refused("store-policy.json", bucket, prefix, beyond) == sorted(beyond, key=str)
    assert refused("pull-policy.json", bucket, prefix, [Request("s3:ListBucket", bucket)])
    assert refused("pull-policy.json", bucket, prefix, [Request("s3:PutObject", f"{bucket}/{prefix}/x")])
