"""Open s3fs for a store: its settings, and what is changed below it.

s3fs and botocore retry in silence; both are told to ask once, because `Retry` repeats requests and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from aiobotocore.session import AioSession
from botocore.utils import determine_content_length, parse_timestamp
from s3fs import S3FileSystem

from ray_learngene import __version__
from ray_learngene.io import s3_settings

CONNECTIONS = 32  # kept open for the next requests
SMALL_BYTES = 2**18  # a body of so many is sent at once
_DECIDED_HERE = {
    *("anon", "endpoint_url", "profile", "client_kwargs", "config_kwargs", "session", "retries", "asynchronous"),
    *("loop", "use_listings_cache", "skip_instance_cache", "version_aware"),
}


def new_session(options: Mapping[str, Any]) -> AioSession:
    """A session of botocore with the changes that a store needs."""
    session = AioSession(profile=options.get("profile"))
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp)
    events = session.get_component("event_emitter")
    events.register_last("before-call.s3", _send_with_headers)
    events.register_last("before-call.s3.HeadBucket", _follow_no_redirect)
    return session


def open_s3(options: Mapping[str, Any], session: AioSession, anonymous: bool) -> S3FileSystem:
    """A client whose requests run on the event loop that awaits the first of them."""
    settings = s3_settings.s3_settings(options)
    client, config = options.get("client_kwargs") or {}, options.get("config_kwargs") or {}
    s3 = S3FileSystem(
        **{name: value for name, value in options.items() if name not in _DECIDED_HERE},
        anon=anonymous,
        endpoint_url=settings["endpoint"],
        client_kwargs={
            **{name: value for name, value in client.items() if name != "endpoint_url"},
            "region_name": settings["region"],
        },
        config_kwargs={
            "max_pool_connections": CONNECTIONS,
            "user_agent": f"ray-learngene/{__version__} s3fs",  # else botocore puts one together for each request
            **config,
            "connect_timeout": s3_settings.CONNECT_SECONDS,
            "read_timeout": s3_settings.REQUEST_SECONDS,
            "retries": {"total_max_attempts": 1},
            # Over https this is the default. Over http a SHA-256 of every body would be one more, next to the
            # manifest's of the same bytes; the server sees damage on the way by a CRC.
            "s3": {"payload_signing_enabled": False, **(config.get("s3") or {})},
        },
        session=session,
        asynchronous=True,  # else s3fs closes it itself, on whatever loop runs when it is dropped
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    s3.retries = 1
    return s3


def timestamp(text: str) -> datetime:
    """Parse a date of a list or of a header. botocore's own parser takes most of the time of a long list."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError):
            return parse(text)
    found: datetime = parse_timestamp(text)
    return found


def _send_with_headers(params: dict[str, Any], **others: Any) -> None:
    """Send a small body along with its headers; botocore asks first whether the server takes it."""
    size = determine_content_length(params["body"]) if params.get("body") else 0
    if size is not None and size <= SMALL_BYTES:
        params["headers"].pop("Expect", None)


def _follow_no_redirect(params: dict[str, Any], **others: Any) -> None:
    """Ask for a bucket's region once. botocore asks so where a redirect names none, and for each answer to it again."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True
