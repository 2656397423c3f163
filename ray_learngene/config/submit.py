"""Settings of `learngene submit` itself; the command that is submitted has its own."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from ray_learngene.config.base import Config


class SubmitConfig(Config):
    """`learngene submit`: run a command as a job on a Ray cluster, which goes on when this machine is switched off."""

    address: str | None = Field(
        None, description="job server of the cluster, e.g. http://head:8265; default: RAY_API_SERVER_ADDRESS"
    )
    follow: bool = Field(True, description="print the job's log to its end and end with its exit status")
    submission_id: str | None = Field(
        None, description="id of the job, for `ray job logs`; default: from the command, its name and its store"
    )
    runtime_env: str | None = Field(
        None, description="YAML file of a Ray runtime environment (pip, image_uri, env_vars) that is added to the job's"
    )

    @field_validator("submission_id")
    @classmethod
    def _an_id(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[a-zA-Z0-9_-]+", value):
            raise ValueError("write letters, digits, '_' and '-'")
        return value
