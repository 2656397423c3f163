"""Fixtures on a local cluster of several hosts: cluster/local."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local.cluster import LocalCluster, require_namespaces
from ray_learngene.errors import UserError
from tests.hosts.site import Site


@pytest.fixture(scope="module")
def hosts(request: pytest.FixtureRequest) -> int:
    """Worker hosts that a file's tests need."""
    return getattr(request.module, "HOSTS", 2)


@pytest.fixture(scope="module")
def site(hosts: int) -> Iterator[Site]:
    """A running cluster, an empty store on its S3 server, and this process's access to the store."""
    try:
        require_namespaces()
    except UserError as error:
        pytest.skip(str(error))
    # A developer may keep a cluster from test to test: LOCAL_CLUSTER=FOLDER, as given to `python -m cluster.local`.
    given = os.environ.get("LOCAL_CLUSTER")
    folder = Path(given or tempfile.mkdtemp(prefix="lg-", dir="/tmp"))
    cluster = LocalCluster(folder)
    kept = dict(os.environ)
    try:
        cluster.up(max(hosts, len(cluster.workers)) if cluster.exists else hosts)
        os.environ.update({name: value for name, value in cluster.environment().items() if name.startswith("AWS_")})
        yield Site(cluster)
    finally:
        os.environ.clear()
        os.environ.update(kept)
        if not given:
            cluster.down()


@pytest.fixture
def strike(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """A row of docs/fault-tolerance.md, filled in by the test: what was killed, when, and what it cost."""
    row: dict[str, str] = {}
    yield row
    if "final result" in row:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n| {' | '.join(row.values())} |", flush=True)
