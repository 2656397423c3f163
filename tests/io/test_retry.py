"""How long is waited before a request is made again."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from ray_learngene.io import retry
from ray_learngene.io.errors import Unavailable, explain
from ray_learngene.io.retry import FIRST_PAUSE, Retry


def answered(status: int, **headers: str) -> ClientError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ClientError(
        {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": named}}, "Get"
    )


class Waits:
    """In the place of the event that `Retry` waits for: nothing is waited for, and how long is noted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7.0, 7.0 + FIRST_PAUSE),
        ("0", 0.0, FIRST_PAUSE),
        ("1" * 400, 300.0, 300.0),
        ("soon", 0.0, FIRST_PAUSE),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0.0, FIRST_PAUSE),
        (format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), 300.0, 300.0),
    ],
    ids=["7 s", "0 s", "ages", "no number", "yesterday", "tomorrow"],  # processes that share the tests agree on names
)
def test_the_server_says_how_long_to_wait(
    header: str, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: 0.0))
    waiting, waits, left = Retry(300.0), Waits(), [answered(429, retry_after=header)]
    waiting._given_up = waits  # type: ignore[assignment]

    def attempt() -> Any:
        if left:
            raise explain(left.pop(), "s3://a")
        return "done"

    assert waiting.wait_for(attempt) == "done"
    (waited,) = waits.seconds
    assert least <= waited <= most


@pytest.mark.parametrize(
    ("status", "retried"),
    [(s, True) for s in (408, 429, 500, 502, 503, 504, 520)]
    + [(s, False) for s in (400, 401, 403, 404, 501, 505, 507)],
)
def test_what_waiting_can_help(status: int, retried: bool) -> None:
    assert isinstance(explain(answered(status), "s3://a"), Unavailable) == retried
