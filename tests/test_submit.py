"""`learngene submit` before anything is submitted; the rest is in tests/cluster/test_submit.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_learngene import cli

ROOT = Path(__file__).parent.parent
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
            [*SWEEP, "--store", "s3://b/p"],
            {"AWS_ENDPOINT_URL": "http://me:secret@h"},
            "AWS_ENDPOINT_URL holds a password",
        ),
        ([*SWEEP, "--store", "s3://b/p", "--epochs", "-1"], {}, "--epochs: input should be greater than or equal to 0"),
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
    assert cli.main(["submit", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and len(said.splitlines()) == 1 and "me:secret" not in said


def test_secrets_in_the_runtime_environment_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(json.dumps({"env_vars": {"AWS_SECRET_ACCESS_KEY": "hidden"}}))
    assert cli.main(["submit", *SWEEP, "--store", "s3://b/p", "--runtime-env", str(path)]) == 2
    said = capsys.readouterr().err
    assert "AWS_SECRET_ACCESS_KEY is a secret" in said and "hidden" not in said
