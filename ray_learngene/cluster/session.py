"""Connect to Ray, and ask it for resources."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from ray_learngene import sigterm
from ray_learngene.cluster import ray_internals, shared_tensors
from ray_learngene.config import WorkersConfig
from ray_learngene.config.sweep import TrialsConfig
from ray_learngene.errors import Unreachable, UserError
from ray_learngene.io.options import VARIABLE as STORAGE_OPTIONS
from ray_learngene.models.device import allow_gpu

_CONNECT_SECONDS = 10
_ROOM = 64 * 10**6  # bytes; a session's logs grow slowly


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine; disconnect at the end, unless Ray was running before.

    The address is the one given, else RAY_ADDRESS (set inside `ray job submit`), else this machine.

    Raises:
        UserError: no cluster answers there, it wants a token, or this machine is none of its nodes; or Ray does not
            start here.
    """
    if ray.is_initialized():
        shared_tensors.silence_warning()
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        require_listener(address)
        _require_node(address)
    # Workers' logs stay in Ray's log files: progress and errors reach the terminal by other ways, without prefixes.
    settings: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        settings["include_dashboard"] = False
        _require_room()  # else Ray waits half a minute for a file that cannot be written
    elif (options := os.environ.get(STORAGE_OPTIONS)) and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        settings["runtime_env"] = {"env_vars": {STORAGE_OPTIONS: options}}  # a submitted job has them already
    try:
        ray.init(**settings)
    except Exception as error:  # a bare one, too, is what Ray raises
        if address is None:
            _require_room()
        raise UserError(_explain(error, address)) from None
    shared_tensors.silence_warning()
    try:
        with sigterm.quiet_exit():
            yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _require_room("; what is finished is in the store, and the same command continues")
        raise
    finally:
        ray.shutdown()


def require_listener(address: str) -> None:
    """Check that a cluster listens at the address; Ray itself would retry for minutes.

    Raises:
        UserError: nothing does, or the address holds a password, which Ray would show to all users of the cluster.
    """
    if "@" in address:  # not echoed
        raise UserError(
            "the address of the Ray cluster holds a user name or a password: give HOST:PORT in --address and "
            "RAY_ADDRESS, and the cluster's token in RAY_AUTH_TOKEN_PATH"
        )
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like, which Ray resolves itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise Unreachable(f"no Ray cluster answers at {address}: check --address and RAY_ADDRESS ({reason})") from None


def _require_room(more: str = "") -> None:
    """Check the free space of Ray's own files: sockets, logs and states.

    Raises:
        UserError: it is; the message ends with `more`.
    """
    folder = Path(ray_internals.temporary_folder())
    if not folder.is_dir():
        return  # Ray makes it, or says why it cannot
    free = shutil.disk_usage(folder).free
    if free < _ROOM:
        raise UserError(
            f"{free / 1e6:.0f} MB are free in {folder}, where Ray keeps its own files: free {_ROOM / 1e6:.0f} MB, or "
            f"set RAY_TMPDIR to another disk{more}"
        )


def _require_node(address: str) -> None:
    """Check that this machine is a node of the cluster.

    On another machine Ray would end the process with a C++ trace. It would also take a refused token for a network
    failure.
    """
    import grpc

    if "://" in address or not address.rpartition(":")[2].isdigit():
        return
    try:
        nodes = ray_internals.node_infos(address, _CONNECT_SECONDS)
    except ray.exceptions.AuthenticationError:  # no token here
        raise UserError(token_missing(address)) from None
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise UserError(token_missing(address)) from None
        raise UserError(_explain(RuntimeError(error.details()), address)) from None
    if not any(node.state == node.ALIVE and _is_here(node.node_manager_address) for node in nodes.node_info_list):
        raise UserError(
            f"this machine is no node of the Ray cluster at {address}: run the command on one of its nodes, or submit "
            "it from here (learngene submit --address http://HEAD:8265 ...)"
        )


def _is_here(address: str) -> bool:
    """Check whether an address is this machine's, by binding a socket to it."""
    try:
        socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
    except OSError:
        return False
    return True


def _explain(error: Exception, address: str | None) -> str:
    text = " ".join(str(error).split())
    if "token" in text.lower() or "401" in text or "unauthenticated" in text.lower():
        return token_missing(address or "this machine")
    if address is None:
        return f"Ray does not start on this machine: {text[:200]}"
    return f"no Ray cluster answers at {address}: check --address and RAY_ADDRESS ({text[:200]})"


def token_missing(address: str) -> str:
    """Return the message about a missing or refused token."""
    return (
        f"Ray at {address} wants its token: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE "
        "(or RAY_AUTH_TOKEN) with the token of the cluster's head"
    )


def cluster_has_gpus() -> bool:
    """Return whether any node of the connected cluster has a GPU."""
    return ray.cluster_resources().get("GPU", 0) > 0


def trial_gpus(config: TrialsConfig, what: str = "trials") -> float:
    """Return the GPU share of each training of a sweep; refuse one that this machine can never schedule."""
    gpus = float(cluster_has_gpus()) if config.gpus_per_trial is None else config.gpus_per_trial
    require_resources(config.address, 1, config.cpus_per_trial, gpus, what)
    return gpus


def worker_gpus(config: WorkersConfig, least: int) -> int:
    """Return the GPUs of each worker, one or none; refuse workers that this machine can never schedule."""
    gpus = int(cluster_has_gpus() if config.use_gpu is None else config.use_gpu)
    require_resources(config.address, least, config.cpus_per_worker, gpus, "workers")
    return gpus


def use_assigned(threads: float = 0) -> None:
    """Let this worker compute with what it has: a GPU only if Ray assigned one, and threads, else OMP_NUM_THREADS.

    Ray hides no GPU from workers without one.
    """
    allow_gpu(bool(ray.get_runtime_context().get_accelerator_ids()["GPU"]))
    torch.set_num_threads(max(1, int(threads or os.environ.get("OMP_NUM_THREADS", "1"))))


def require_resources(address: str | None, count: int, cpus: float, gpus: float, what: str) -> None:
    """Refuse what this machine can never schedule. A cluster may grow, so nothing is refused there.

    Raises:
        UserError: says what is asked for and what there is.
    """
    if address or os.environ.get("RAY_ADDRESS") or len(ray.nodes()) > 1:
        return
    have = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if count * each > have.get(name, 0):
            raise UserError(
                f"{count} {what} with {each:g} {name} each do not fit: this machine has {have.get(name, 0):g}; "
                "ask for fewer, or connect to a cluster by --address"
            )
