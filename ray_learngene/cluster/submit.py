"""Run a command as a job on a Ray cluster; it goes on when this machine is switched off.

    learngene submit --address http://head:8265 distill --config recipe.yaml --store s3://bucket/store

The recipe, this version of the package and the store's endpoint travel with the job. Submitting the same command twice
gives one job. The command follows the job's log and ends with its exit status.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray_learngene
from ray_learngene.cluster.job_log import ENDED, follow
from ray_learngene.cluster.session import require_listener, token_missing
from ray_learngene.config import Config, SubmitConfig
from ray_learngene.config.base import read_recipe
from ray_learngene.config.documents import write_yaml
from ray_learngene.errors import UserError, reason_of
from ray_learngene.provenance import REVISION_VARIABLE, fingerprint, git_revision

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger(__name__)

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}  # as in jobs/runtime_env.yaml
PASSED_ON = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("LEARNGENE_STORAGE_OPTIONS", "AZURE_STORAGE_ACCOUNT_NAME", "STORAGE_EMULATOR_HOST"),
)
SECRETS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN"),
)
DRIVER = "driver"  # a resource that clusters of ours give to their heads: see cluster/
_TALKATIVE = (
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
    "ray._private.runtime_env.packaging",
)
BUILT_IN, BUILT_IN_KINDS = ("digits", "cifar10"), ("torch/", "hfds/")  # --data that is no folder


def submit(command: str, config: Config, settings: SubmitConfig, show: Callable[[str], object]) -> None:
    """Submit a command whose configuration is valid, or find the job that runs it already, and follow it.

    Args:
        show: Called with the job's log as it comes, in pieces of any length.

    Raises:
        UserError: no cluster answers, it wants a token, or something in the configuration exists on this machine only.
        JobFailed: the job did; with its exit status.
    """
    _refuse_what_stays_here(command, config)
    runtime_env = _runtime_env(settings)
    client = _connect(settings.address)
    with _errors_of(client.get_address()):
        key = settings.submission_id or _key(command, config)
        job = _running(client, key, command, config) or _start(client, key, command, config, runtime_env)
    again = f"--address {client.get_address()}"
    if settings.follow:
        follow(client, job, show)
    else:
        log.info(f"stop it: ray job stop {job} {again}; follow it: submit it again")


def _refuse_what_stays_here(command: str, config: Config) -> None:
    """Refuse folders of this machine that the cluster's nodes do not see."""
    values = config.model_dump(exclude_unset=True)
    if "store" not in values:
        raise UserError("--store is required: the cluster does not see this machine's folders; give s3://bucket/prefix")
    if "://" not in values["store"]:
        log.warning(f"the store {values['store']} has to be a folder that all nodes of the cluster share")
    for name in ("data", "data_dir", "ancestry", "source", "model"):
        value = values.get(name)
        path = value.removeprefix("local-dir:") if isinstance(value, str) else "/"
        if name == "data" and (path in BUILT_IN or path.startswith(BUILT_IN_KINDS)):
            continue
        if not os.path.isabs(path) and os.path.exists(path) and (os.sep in path or path != value or "data" in name):
            raise UserError(
                f"--{name.replace('_', '-')} {value}: the cluster does not see this machine's folders; "
                "give s3://bucket/prefix, or the absolute path of a folder that all its nodes have"
            )
    out = getattr(config, "out", "/")
    if out is None or not os.path.isabs(out):
        raise UserError(f"--out is required for `submit {command}`: the absolute path of a folder that the head keeps")


def _runtime_env(settings: SubmitConfig) -> dict[str, Any]:
    """Return the job's runtime environment without its files. The dashboard shows it: nothing secret may be in it."""
    from ray.runtime_env import RuntimeEnv

    given = read_recipe(settings.runtime_env) if settings.runtime_env else {}
    if {"working_dir", "py_modules"} & given.keys():
        raise UserError(
            f"{settings.runtime_env}: working_dir and py_modules are set by `learngene submit`: remove them"
        )
    passed_on = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    own = given.pop("env_vars", None) or {}
    if not isinstance(own, dict):
        raise UserError(f"{settings.runtime_env}: env_vars: expected 'NAME: value' lines")
    variables = {**ENVIRONMENT, **passed_on, **own}
    for name in PASSED_ON:
        if name != "LEARNGENE_STORAGE_OPTIONS" and "@" in str(variables.get(name, "")):
            raise UserError(f"{name} holds a password, and a job's environment is shown to all: put it into a profile")
    for name in SECRETS:
        if name in variables:
            raise UserError(
                f"{settings.runtime_env}: {name} is a secret, and a job's environment is shown to all: "
                "give it to the nodes (instance profile, Kubernetes secret)"
            )
    revision = git_revision()
    if revision:
        variables[REVISION_VARIABLE] = revision
    runtime_env = {**given, "env_vars": {name: str(value) for name, value in variables.items()}}
    try:
        RuntimeEnv(**runtime_env)
    except (TypeError, ValueError) as error:
        raise UserError(f"{settings.runtime_env}: {' '.join(str(error).split())[:300]}") from None
    return runtime_env


def _connect(address: str | None) -> JobSubmissionClient:
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise UserError("which cluster? give --address http://head:8265, or export RAY_API_SERVER_ADDRESS")
    require_listener(address)
    from ray.job_submission import JobSubmissionClient

    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which the client prefers to its argument
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    with _errors_of(address):
        return JobSubmissionClient(address)


@contextmanager
def _errors_of(address: str) -> Iterator[None]:
    from ray.exceptions import AuthenticationError
    from ray.util.state.exception import RayStateApiException

    try:
        yield
    except AuthenticationError:
        raise UserError(token_missing(address)) from None
    except (OSError, RuntimeError, RayStateApiException) as error:  # OSError: ConnectionError, and those of requests
        raise UserError(f"the job server at {address} does not take the job: {reason_of(error)}") from None


def _key(command: str, config: Config) -> str:
    """Return the prefix of submission ids; the same name and store are the same work."""
    values = config.model_dump(mode="json")
    name = values.get("name") or values.get("artefact") or {"pull": "best"}.get(command, "views")
    # a pull and soft labels have no name: their settings tell one from another
    work = values if command in ("pull", "softlabels") else {"store": values["store"], "name": name}
    return f"{command}-{re.sub('[^a-zA-Z0-9_-]+', '-', name)}-{fingerprint(work)[:6]}"


def _decisive(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True, exclude={"address"})


def _attempts(client: JobSubmissionClient, key: str) -> dict[int, JobDetails]:
    """Return the cluster's jobs of a key, by the number at the end of their ids; the key alone is the first."""
    jobs = ((re.fullmatch(rf"{key}(?:\.(\d+))?", job.submission_id or ""), job) for job in client.list_jobs())
    return {int(match[1] or 1): job for match, job in jobs if match}


def _running(client: JobSubmissionClient, key: str, command: str, config: Config) -> str | None:
    """Return the id of the job that does this work now."""
    for job in _attempts(client, key).values():
        if job.status in ENDED:
            continue
        if (job.metadata or {}).get("settings") != fingerprint(_decisive(config)):
            raise UserError(
                f"job {job.submission_id} is doing {command} under this name with other settings: wait for it, "
                f"stop it (ray job stop {job.submission_id}), or choose another --name"
            )
        log.info(f"job {job.submission_id} is running already: following it")
        return str(job.submission_id)
    return None


def _start(client: JobSubmissionClient, key: str, command: str, config: Config, runtime_env: dict[str, Any]) -> str:
    attempts = _attempts(client, key)
    job = key if key != _key(command, config) and not attempts else f"{key}.{max(attempts, default=0) + 1}"
    with tempfile.TemporaryDirectory() as temporary:
        recipe = f"{command}.yaml"
        values = _decisive(config)
        if values.get("deepspeed"):
            values["deepspeed"] = Path(shutil.copy(values["deepspeed"], temporary)).name
        (Path(temporary) / recipe).write_text(write_yaml(values))
        try:
            client.submit_job(
                entrypoint=f"python -m ray_learngene {command} --config {recipe}",
                submission_id=job,
                runtime_env={
                    **runtime_env,
                    "working_dir": temporary,
                    "py_modules": [str(Path(ray_learngene.__file__).parent)],
                },
                metadata={"command": command, "settings": fingerprint(_decisive(config))},
                entrypoint_resources=_driver_share(client.get_address()),
            )
        except RuntimeError:
            started = _running(client, key, command, config)  # by someone else in between
            if started is None:
                raise
            return started
    earlier = f", attempt {max(attempts) + 1}: it continues what is in the store" if attempts else ""
    log.info(f"submitted job {job} to {client.get_address()}{earlier}")
    return job


def _driver_share(address: str) -> dict[str, float] | None:
    """Return the resource that limits the drivers on the head, if the cluster has it.

    Without it Ray starts drivers on the head too, but any number of them.
    """
    from ray.util.state import list_nodes

    # Ray takes nodes that a filter leaves out for missing ones, and would raise.
    heads = list_nodes(
        address=address, detail=True, filters=[("is_head_node", "=", True)], raise_on_missing_output=False
    )
    return {DRIVER: 1} if any(DRIVER in (head.resources_total or {}) for head in heads) else None
