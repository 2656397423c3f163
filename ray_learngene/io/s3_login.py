"""Find credentials for S3 by botocore's chain: variables, profiles, roles, SSO, programs, instances.

Keys that expire are fetched again by botocore while a run goes on. What goes wrong then is `LoginFailed`: it is not the
S3 server that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError
from fsspec.asyn import get_loop, sync

from ray_learngene.io.errors import LoginFailed
from ray_learngene.io.s3_open import new_session

LOGIN_SECONDS = 60.0  # a program that gives keys may ask its user for something
NO_SUCH = (NoCredentialsError, PartialCredentialsError, ProfileNotFound)  # which says all by itself

# They print tracebacks of what is raised, too, or tried again.
for _name in ("aiobotocore.credentials", "aiobotocore.tokens", "botocore.credentials", "botocore.tokens"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def log_in(options: Mapping[str, Any]) -> tuple[AioSession, Any]:
    """A session, and the credentials that are found for it; None if there are none.

    Args:
        options: Arguments of `S3FileSystem`, on top of the standard variables and profiles.

    Raises:
        LoginFailed: They cannot be had.
    """
    session = new_session(options)
    if options.get("anon"):
        return session, None
    with _login_errors():
        found = sync(get_loop(), session.get_credentials, timeout=LOGIN_SECONDS)
        if fetch := getattr(found, "_refresh_using", None):
            found._refresh_using = partial(_fetched, fetch)
        return session, found and sync(get_loop(), found.get_frozen_credentials, timeout=LOGIN_SECONDS)


async def _fetched(fetch: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    """Keys that hold for a while."""
    with _login_errors():
        keys = await fetch()
        if until := keys.get("expiry_time"):
            try:
                expired = datetime.fromisoformat(until) <= datetime.now(UTC)
            except (TypeError, ValueError):
                expired = False  # botocore reads more forms of dates, and raises an error of its own
            if expired:
                raise PermissionError(f"they were to be used until {until}: set this machine's clock, or renew them")
        return keys


@contextmanager
def _login_errors() -> Iterator[None]:
    try:
        yield
    except (LoginFailed, *NO_SUCH):
        raise
    except (BotoCoreError, ClientError, ResponseParserError, OSError, RuntimeError) as error:
        raise LoginFailed from error
