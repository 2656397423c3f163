"""Keys by a role or by SSO: found as botocore finds them, and fetched again when they run out."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable
from ray_learngene.store.store import Store
from tests.conftest import S3Server
from tests.io.roles import Roles, running_roles
from tests.store.folders import one_line

CONFIG = """
[profile web]
role_arn = arn:aws:iam::123456789012:role/trainer
web_identity_token_file = {home}/token
[profile assumed]
role_arn = arn:aws:iam::123456789012:role/trainer
source_profile = keys
[profile keys]
aws_access_key_id = a
aws_secret_access_key = b
[profile sso]
sso_session = corp
sso_account_id = 123456789012
sso_role_name = Trainer
[sso-session corp]
sso_region = us-east-1
sso_start_url = https://corp.example/start
"""
ASKED = {"web": "AssumeRoleWithWebIdentity", "assumed": "AssumeRole", "sso": "Trainer of 123456789012"}
PUT_AND_READ = """
import os, sys
from ray_learngene.store.store import Store
for profile in sys.argv[2:]:
    os.environ["AWS_PROFILE"] = profile
    store = Store(sys.argv[1])
    store.objects.put(profile, b"x")
    assert store.objects.read(profile) == b"x"
"""


@pytest.fixture
def uri(s3_env: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket whose keys are to be had by profiles alone."""
    uri = s3_env()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text("a token")
    (tmp_path / "config").write_text(CONFIG.format(home=tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return uri


@pytest.fixture
def roles(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Roles]:
    with running_roles((s3_server.access_key, s3_server.secret, 3600)) as roles:
        for service in ("STS", "SSO"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", roles.endpoint)
        yield roles


def test_roles_and_sso_give_keys_that_are_fetched_again_when_they_run_out(
    uri: str, roles: Roles, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where `aws sso login` leaves its token
    cache = tmp_path / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    until = (datetime.now(UTC) + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    token = {"accessToken": "t", "expiresAt": until, "startUrl": "https://corp.example/start", "region": "us-east-1"}
    (cache / f"{hashlib.sha1(b'corp').hexdigest()}.json").write_text(json.dumps(token))
    # The first of each two may only read, and runs out.
    roles.keys = [(s3_server.reader_key, s3_server.reader_secret, 30), *roles.keys] * len(ASKED)
    ran = subprocess.run([sys.executable, "-c", PUT_AND_READ, uri, *ASKED], capture_output=True, text=True, timeout=900)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert roles.asked == [asked for asked in ASKED.values() for _ in range(2)]


@pytest.mark.parametrize(
    ("profile", "breaks", "message"),
    [
        (
            "web",
            "refused",
            "AccessDenied.* when calling the AssumeRoleWithWebIdentity operation.*: check AWS_PROFILE",
        ),
        ("assumed", "refused", "AccessDenied.*: check AWS_PROFILE, and its role, token or program$"),
        ("web", "no token", "No such file or directory: '.*token'.*: check AWS_PROFILE"),
        ("web", "expired", "they were to be used until .*: set this machine's clock, or renew them"),
        ("web", "the S3 server", "not STS that answers.*set AWS_ENDPOINT_URL_S3 instead"),
        ("sso", "no login", "the SSO login for .* is missing or has expired: run aws sso login --profile sso$"),
        ("assumed", "away", "no answer from the service that gives credentials for .*check the network$"),
    ],
)
def test_keys_that_cannot_be_had_are_one_line(
    uri: str, roles: Roles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, breaks: str, message: str
) -> None:
    monkeypatch.setenv("AWS_PROFILE", profile)
    if breaks == "refused":
        roles.refusal = "AccessDenied"
    elif breaks == "expired":
        roles.keys = [(key, secret, -3600) for key, secret, _ in roles.keys]
    elif breaks == "no token":
        os.remove(tmp_path / "token")
    elif breaks == "the S3 server":
        monkeypatch.delenv("AWS_ENDPOINT_URL_STS")
        monkeypatch.delenv("AWS_ENDPOINT_URL_SSO")
    elif breaks == "away":
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=message) as error:
        Store(uri).check(write=False)
    one_line(error)
    assert isinstance(error.value, Unavailable) == (breaks == "away")
