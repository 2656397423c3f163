"""Follow a submitted job's log to its end, however often the connection or the head is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ray_learngene.cluster.session import token_missing
from ray_learngene.errors import JobFailed, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

SILENCE_SECONDS = 15  # of the log, after which the job's status is asked for
GONE_SECONDS = 60  # without an answer, after which the head is given up
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], object]) -> None:
    """Show the job's log until it ends.

    Raises:
        JobFailed: it failed, was stopped, or was lost with the head.
        UserError: the token is not taken any more.
        KeyboardInterrupt: with what to do about the job, which goes on.
    """
    from ray.exceptions import AuthenticationError

    address = client.get_address()
    try:
        details = asyncio.run(_show_log(client, job, show))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"job {job} goes on; follow it: submit it again; stop it: ray job stop {job} --address {address}"
        ) from None
    except AuthenticationError:  # from now on; the job goes on
        raise UserError(token_missing(address)) from None
    if details is None:
        raise JobFailed(
            f"job {job} was lost with the head at {address}; its work is in the store: submit it again to continue", 1
        )
    if details.status == "STOPPED":
        raise JobFailed(f"job {job} was stopped; submit it again to continue", 1)
    if details.status == "FAILED":
        status = details.driver_exit_code or 1
        status = 128 - status if status < 0 else status  # as a shell has it for a process that a signal ended
        # what the driver said is in its log; where it did not start, Ray's message is all there is
        why = (
            f"with exit status {status}"
            if details.driver_exit_code
            else " ".join((details.message or "").split())[:300]
        )
        raise JobFailed(f"job {job} failed {why}; submit it again to continue", status)


async def _show_log(client: JobSubmissionClient, job: str, show: Callable[[str], object]) -> JobDetails | None:
    """Show a job's log to its end; return its details, or None if the cluster no longer knows it."""
    import aiohttp

    shown = 0
    while True:
        read = 0
        log = client.tail_job_logs(job)
        while True:
            try:
                # A head without power says nothing at all: after a silence, ask.
                text = await asyncio.wait_for(anext(log), SILENCE_SECONDS)
            except (StopAsyncIteration, TimeoutError, RuntimeError, aiohttp.ClientError, OSError):
                break  # ended, silent or cut: the status tells which
            show(text[max(0, shown - read) :])
            read += len(text)
            shown = max(shown, read)
        details = await asyncio.to_thread(_status, client, job)
        if details is None or details.status in ENDED:
            if details is not None:
                with suppress(OSError, RuntimeError):  # how it ended matters more
                    whole = await asyncio.to_thread(client.get_job_logs, job)
                    show(whole[shown:])
            return details


def _status(client: JobSubmissionClient, job: str) -> JobDetails | None:
    """Return a job's details, or None if the cluster no longer knows it or does not answer."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        try:
            return client.get_job_info(job)
        except (OSError, RuntimeError) as error:  # RuntimeError: any other answer than 200, also of a proxy
            if "status code 404" in str(error) or time.monotonic() > deadline:
                return None
            time.sleep(1)
