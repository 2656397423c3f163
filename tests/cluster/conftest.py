"""Fixtures on a local cluster of several hosts: cluster/local."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local.cluster import LocalCluster, require_namespaces
from ray_learngene.errors import UserError
from tests.cluster.site import Site

STRIKES = pytest.StashKey[list[dict[str, str]]]()


@pytest.fixture(scope="module")
def hosts(request: pytest.FixtureRequest) -> int:
    """Worker hosts that a file's tests need."""
    return getattr(request.module, "HOSTS", 2)


@pytest.fixture(scope="module")
def site(hosts: int) -> Iterator[Site]:
    """A running cluster, an empty store on its S3 server, and this process's access to both."""
    try:
        require_namespaces()
    except UserError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="lg-", dir="/tmp"))
    cluster = LocalCluster(folder)
    kept = dict(os.environ)
    try:
        cluster.up(hosts)
        os.environ.update({name: value for name, value in cluster.environment().items() if name.startswith("AWS_")})
        yield Site(cluster)
    finally:
        os.environ.clear()
        os.environ.update(kept)
        if "KEEP_LOGS" in kept and cluster.exists:  # where a developer wants to see what the hosts said
            for host in cluster.hosts.values():
                shutil.copytree(host.folder, Path(kept["KEEP_LOGS"]) / host.name, dirs_exist_ok=True, ignore=_no_logs)
        cluster.down()


def _no_logs(folder: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if name in ("data", "home", "sockets", "runtime_resources") or not (Path(folder) / name).resolve().exists()
    }


@pytest.fixture
def strike(request: pytest.FixtureRequest) -> dict[str, str]:
    """A row of docs/fault-tolerance.md, filled in by the test: what was killed, when, and what it cost."""
    row: dict[str, str] = {}
    request.config.stash.setdefault(STRIKES, []).append(row)
    return row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [row for row in config.stash.get(STRIKES, []) if row]
    if not rows:
        return
    terminalreporter.section("what was killed")
    heads = list(rows[0])
    for cells in (heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)):
        terminalreporter.write_line(f"| {' | '.join(cells)} |")
