"""`learngene submit`: run a command as a job on a cluster, and print its log."""

from __future__ import annotations

from functools import partial

from ray_learngene.cluster.submit import submit
from ray_learngene.config import Config, SubmitConfig


def print_job(command: str, config: Config, settings: SubmitConfig) -> None:
    """Submit a command, or find its job, and print the job's log until it ends."""
    submit(command, config, settings, show=partial(print, end="", flush=True))
