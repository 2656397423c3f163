"""Settings of `learngene submit` itself; the command that is submitted has its own."""

from __future__ import annotations

from pydantic import Field

from ray_learngene.config.base import Config


class SubmitConfig(Config):
    """`learngene submit`: run a command as a job on a Ray cluster, which goes on when this machine is switched off."""

    address: str | None = Field(
        None, description="job server of the cluster, e.g. http://head:8265; default: RAY_API_SERVER_ADDRESS"
    )
    follow: bool = Field(True, description="print the job's log to its end and end with its exit status")
    runtime_env: str | None = Field(
        None, description="YAML file of a Ray runtime environment (pip, image_uri, env_vars) that is added to the job's"
    )
