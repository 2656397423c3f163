"""Count the processes that a cluster or this machine runs at once, and the memory of each."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping

import torch

from ray_learngene.models.device import resolve_device
from ray_learngene.sweeps.packing import Place


def cluster_place(cpus: float, gpus: float, most: int) -> Place:
    """Return the place of processes with so many CPUs and GPUs each on the connected cluster.

    Nodes that it may still start count. Memory is that of a GPU, measured on one. Without GPUs it is the least share of
    a node's memory in Ray, less what a process takes without a model.

    Args:
        most: Processes at once; 0: as many as there is room for.
    """
    import ray

    from ray_learngene.cluster import ray_internals

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [_room(node, cpus, gpus) for node in nodes]
    grown = ray_internals.most_resources()
    count = max(sum(room), _room(grown, cpus, gpus) if grown else 0, 1)
    count = min(count, most or count)
    if gpus:
        measure = ray.remote(num_cpus=cpus, num_gpus=gpus)(_gpu_memory)
        return Place(count, ray.get(measure.remote(gpus)))
    shares = [node.get("memory", math.inf) / fit for node, fit in zip(nodes, room, strict=True) if fit]
    return Place(count, min(shares, default=math.inf) - _peak_memory())


def own_place() -> Place:
    """Return the place of this process."""
    if resolve_device().type == "cuda":
        return Place(1, _gpu_memory(1))
    from ray_learngene.cluster.ray_internals import available_memory

    return Place(1, available_memory())


def _room(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    room = min(resources.get("CPU", 0) / cpus, sys.maxsize)
    if gpus:
        have = resources.get("GPU", 0)
        # a share is of one GPU; in floats 1 // 0.2 is 4
        room = min(room, have // gpus if gpus >= 1 else have * math.floor(1 / gpus + 1e-9))
    return math.floor(room)


def _peak_memory() -> int:
    """Return the bytes of main memory that this process, which has imported what the others will, has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _gpu_memory(gpus: float) -> float:
    free, total = torch.cuda.mem_get_info()
    return min(free, total * min(1.0, gpus))
