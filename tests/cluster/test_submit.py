"""`learngene submit` before anything is submitted; the rest is in tests/cluster/test_submit.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.job_submission import JobSubmissionClient

from ray_learngene.cli.main import main
from ray_learngene.cluster import submit
from ray_learngene.cluster.job_log import follow
from ray_learngene.config import SoftLabelsConfig
from ray_learngene.errors import JobFailed

ROOT = Path(__file__).parents[2]
SWEEP = ["sweep", "--data", "digits", "--name", "x", "--learngene", "y", "--depths", "1"]


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (SWEEP, {}, "--store is required: the cluster does not see this machine's folders"),
        (
            [*SWEEP, "--store", "s3://b/p", "--data", "jobs/recipes"],
            {},
            "--data jobs/recipes: the cluster does not see",
        ),
        (["pull", "--store", "s3://b/p", "--out", "x"], {}, "--out is required for `submit pull`: the absolute path"),
        ([*SWEEP, "--store", "s3://b/p"], {}, "which cluster? give --address http://head:8265"),
        (
            [*SWEEP, "--store", "s3://b/p", "--address", "http://127.0.0.1:9"],
            {},
            "no Ray cluster answers at http://127",
        ),
        (
            [*SWEEP, "--store", "s3://b/p", "--address", "http://me:secret@127.0.0.1:9"],
            {},
            "the address of the Ray cluster holds a user name or a password",
        ),
        (
            [*SWEEP, "--store", "s3://b/p"],
            {"AWS_ENDPOINT_URL": "http://me:secret@h"},
            "AWS_ENDPOINT_URL holds a password",
        ),
        ([*SWEEP, "--store", "s3://b/p", "--epochs", "-1"], {}, "--epochs: input should be greater than or equal to 0"),
        (["softlabels", "--config", "jobs/recipes/digits-distill.yaml", "--store", "s3://b/p"], {}, "which cluster?"),
        (["list", "--store", "s3://b/p"], {}, "'list' is not run as a job"),
        ([], {}, "which command?"),
    ],
)
def test_mistakes_are_told_before_anything_is_submitted(
    words: list[str],
    variables: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["submit", *words]) == (4 if "no Ray cluster answers" in says else 2)
    said = capsys.readouterr().err.strip()
    assert says in said and len(said.splitlines()) == 1 and "me:secret" not in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("env_vars: [A=1]", "env_vars: expected 'NAME: value' lines"),
        ("pip: 3", "pip"),
        ("{pip: [a], conda: b}", "pip"),
        ("config: {setup_timeout_seconds: x}", "setup_timeout_seconds"),
        ("env_vars: {AWS_ENDPOINT_URL: 'http://me:secret@h'}", "AWS_ENDPOINT_URL holds a password"),
    ],
)
def test_a_mistake_in_the_runtime_environment_is_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(text)
    assert main(["submit", *SWEEP, "--store", "s3://b/p", "--runtime-env", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and len(said.splitlines()) == 1 and "secret" not in said


def test_a_folder_called_like_a_built_in_set_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits").mkdir()  # where `learngene pull learngenes/digits` puts it
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main(["submit", *SWEEP, "--store", "s3://b/p"]) == 2
    assert "which cluster?" in capsys.readouterr().err


def test_soft_labels_are_the_same_job_where_they_are_the_same() -> None:
    views = {"data": "digits", "preset": "nano", "ancestry": "levit_384", "store": "s3://b/p"}
    one, again, other = (submit._key("softlabels", SoftLabelsConfig(**views, epochs=epochs)) for epochs in (10, 10, 20))
    assert one == again != other and one.startswith("softlabels-views-")
    named = SoftLabelsConfig(**views, name="digits")
    assert submit._key("softlabels", named).startswith("softlabels-digits-")


class Gateway(BaseHTTPRequestHandler):
    """A job server behind a gateway that fails between two answers; its log cannot be had."""

    asked = 0

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self._answer(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"})
        elif self.path == "/api/jobs/gone":
            self._answer(404, {})
        elif self.path == "/api/jobs/x":
            type(self).asked += 1
            facts = {"type": "SUBMISSION", "submission_id": "x", "status": "SUCCEEDED", "entrypoint": "x"}
            self._answer(*((502, {}) if self.asked == 1 else (200, facts)))
        else:
            self._answer(503, {})

    def _answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *words: Any) -> None:
        pass


class Jobs(Gateway):
    """A job server that lists jobs of some ids."""

    ids: tuple[str, ...] = ()

    def do_GET(self) -> None:
        if self.path == "/api/jobs/":
            facts = {"type": "SUBMISSION", "status": "SUCCEEDED", "entrypoint": "x"}
            self._answer(200, [{"submission_id": each, **facts} for each in self.ids])
        else:
            super().do_GET()


@contextmanager
def client_of(handler: type[Gateway]) -> Iterator[JobSubmissionClient]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield JobSubmissionClient(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("key", "ids"),
    [
        ("mine", ("mine", "mine.2", "mine-too", "mine.x", "not-mine")),  # --submission-id mine
        ("sweep-s-1a2b3c", ("sweep-s-1a2b3c.1", "sweep-s-1a2b3c.2", "sweep-s")),
    ],
)
def test_attempts_at_a_job_are_counted(key: str, ids: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Jobs, "ids", ids)
    with client_of(Jobs) as client:
        assert sorted(submit._attempts(client, key)) == [1, 2]


def test_a_gateway_that_fails_for_a_moment_does_not_end_the_following_of_a_job() -> None:
    with client_of(Gateway) as client:
        follow(client, "x", print)
        with pytest.raises(JobFailed, match="job gone was lost with the head"):
            follow(client, "gone", print)
    assert Gateway.asked == 2


def test_secrets_in_the_runtime_environment_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(json.dumps({"env_vars": {"AWS_SECRET_ACCESS_KEY": "hidden"}}))
    assert main(["submit", *SWEEP, "--store", "s3://b/p", "--runtime-env", str(path)]) == 2
    said = capsys.readouterr().err
    assert "AWS_SECRET_ACCESS_KEY is a secret" in said and "hidden" not in said
