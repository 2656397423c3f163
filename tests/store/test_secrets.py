"""No secret in any log, artefact, table, page, error or traceback."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_learngene.io.errors import explain
from ray_learngene.store.store import Store
from tests.conftest import S3Server
from tests.store.proxy import Proxy

TINY = {
    "data": "digits", "model": "deit_tiny_patch16_224", "epochs": "1", "batch-size": "64", "workers": "0",
    "holdout": "0.5", "warmup-epochs": "0",
    "model-args": "{img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 1}",
}  # fmt: skip
PROGRAM = """
import logging, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from ray_learngene.cli.main import main
from ray_learngene.store.store import Store
store = Store(sys.argv[1], retry_seconds=0)
for call in (lambda: store.check(True), store.entries, lambda: store.read_text("a.txt")):
    try:
        call()
    except Exception:
        traceback.print_exc()
"""


def said_by(*command: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **environment}, timeout=900
    )
    return ran.stdout + ran.stderr


def learngene(*arguments: str, **environment: str) -> str:
    return said_by("-m", "ray_learngene", *arguments, **environment)


def test_nothing_that_is_said_or_written_holds_a_credential(
    s3_env: Callable[[], str], s3_server: S3Server, tmp_path: Path
) -> None:
    uri = s3_env()
    token = "session-token-never-printed"
    flags = [word for name, value in TINY.items() for word in (f"--{name}", value)]
    made = learngene("ancestry", "--name", "tiny", "--store", uri, *flags)
    assert "published ancestry tiny" in made
    pulled = learngene("pull", "ancestries/tiny", "--store", uri, "--out", str(tmp_path / "tiny"))
    assert "pulled ancestries/tiny" in pulled
    proxy = Proxy(s3_server.endpoint)
    proxy.fault = lambda request: 418
    proxy.body = (
        f"<Error><Code>Teapot</Code><Message>{s3_server.access_key} with {token} is odd</Message>"
        f"<AWSAccessKeyId>{s3_server.access_key}</AWSAccessKeyId></Error>"
    ).encode()
    password = "endpoint-password-never-printed"
    said = [
        made,
        pulled,
        *(
            learngene(command, *more, "--store", uri)
            for command, *more in (("list",), ("show", "ancestries/tiny"), ("gc",))
        ),
        learngene("list", "--store", f"{uri}-no-such-bucket"),
        learngene("list", "--store", uri, AWS_SESSION_TOKEN=token),
        learngene("list", "--store", uri, AWS_ENDPOINT_URL=proxy.endpoint, AWS_SESSION_TOKEN=token),
        learngene("list", "--store", uri, AWS_ENDPOINT_URL=f"http://user:{password}@127.0.0.1:1"),
        learngene("list", "--store", f"s3://{s3_server.access_key}:{s3_server.secret}@bucket"),
        said_by("-c", PROGRAM, f"{uri}-no-such-bucket"),
    ]
    proxy.close()
    assert "holds a user name or a password" in said[-3] and "ancestries/tiny" in said[2] and "Teapot" in "".join(said)
    store = Store(uri)
    written = [(store.objects.read(path) or b"").decode(errors="replace") for path in store.objects.find("")]
    local = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (s3_server.secret, token, password):
        assert not [text for text in (*said, *written, *local) if secret in text]
    # The key's id is no secret to debug logs of the AWS libraries, who sign with it in the open; to ours it is.
    assert not [text for text in (*said[:-1], *written, *local) if s3_server.access_key in text]


def test_what_the_server_repeats_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, f"private-{name.lower()}")
    error = OSError("odd: private-aws_access_key_id and private-aws_secret_access_key and private-aws_session_token")
    assert "private" not in str(explain(error, "s3://a"))
