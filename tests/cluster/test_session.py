"""Connecting to a cluster that is not there."""

from __future__ import annotations

import pytest

from ray_learngene.cluster.session import ray_cluster
from ray_learngene.errors import UserError
from tests.conftest import free_ports


def test_a_cluster_that_does_not_answer() -> None:
    with (
        pytest.raises(UserError, match="no Ray cluster answers at 127.0.0.1"),
        ray_cluster(f"127.0.0.1:{free_ports(1)[0]}"),
    ):
        pass
