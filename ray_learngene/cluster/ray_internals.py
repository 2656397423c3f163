"""Every private name of Ray that this package uses. tests/cluster/test_ray_internals.py says what breaks without each.

Ray may change these in any version: read the test before raising the version in requirements.txt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private.worker import get_dashboard_url

if TYPE_CHECKING:
    from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoReply  # type: ignore[attr-defined]

_PROPAGATED = ("RAY_", "TRAIN_", "TUNE_", "TORCHFT_", "NCCL_")  # prefixes of settings that hold no secret


def temporary_folder() -> str:
    """Return the folder of Ray's own files: sockets, logs, states."""
    return str(get_default_system_temp_dir())


def has_dashboard() -> bool:
    """Return whether the connected Ray has a dashboard."""
    return bool(get_dashboard_url())


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that Ray is about to take away; Ray Train's own watcher asks the same."""
    return set(ray._private.state.state.get_draining_nodes())


def most_resources() -> Mapping[str, float] | None:
    """Return the resources that the cluster may grow to, as Ray Train asks; None where it does not grow."""
    return ray._private.state.state.get_max_resources_from_cluster_config()


def available_memory() -> int:
    """Return the bytes of main memory that this process may take, within the limits of its container."""
    from ray._private.utils import estimate_available_memory

    return int(estimate_available_memory())


def node_infos(address: str, timeout: float) -> GetAllNodeInfoReply:
    """Ask the head at an address for its nodes, without joining the cluster.

    Raises:
        ray.exceptions.AuthenticationError: no token here.
        grpc.RpcError: no answer, or the token is refused.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with init_grpc_channel(address) as channel:
        return NodeInfoGcsServiceStub(channel).GetAllNodeInfo(GetAllNodeInfoRequest(), timeout=timeout)


def keep_credentials_out_of_trials() -> None:
    """Stop Ray Tune from copying the driver's credentials into the runtime environment of every trial.

    Ray's state API and its world-readable logs show runtime environments. Trials use the credentials of their nodes, as
    the workers of Ray Train do.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith(_PROPAGATED)
    }


def without_cleaner(callbacks: list[Any]) -> list[Any]:
    """Return the callbacks of Ray Train without the actor that removes placement groups once the controller has died.

    It asks Ray's dashboard whether the controller lives. Without one, as on this machine alone, every question takes
    ten seconds to fail, and the end of a training waits for it.
    """
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
