"""The product on a cluster of several hosts, from outside: jobs submitted over HTTP with a token, a store on S3."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_learngene.config import AncestryConfig
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.provenance import git_revision
from tests.hosts.site import Job, Site

pytestmark = pytest.mark.hosts  # minutes where the cores are busy
SIZE = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def distilled(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What three submissions of one distillation, by three people at once, said."""
    recipe = site.recipe(tmp_path_factory.mktemp("recipes"))
    train_ancestry(
        AncestryConfig(
            **{"data": "digits", "name": "digits", "store": site.uri, "workers": 0, "epochs": 1, "warmup_epochs": 0},
            model="deit_tiny_patch16_224",
            model_args={**SIZE, "class_token": False, "global_pool": "avg"},
        )
    )
    words = ["distill", "--config", recipe, "--name", "digits", "--ancestry", "store:ancestries/digits"]
    words += ["--method", "sws"]
    words += ["--preset", "nano", "--method", "sws:stages=1-1", "--workers", 2]
    revision = git_revision() or ""
    first = site.submit(*words, "--epochs", 1)
    site.wait_for("the submission", lambda: "submitted job" in first.output, first)
    second = site.submit(*words, "--epochs", 1)
    other = site.submit(*words, "--epochs", 2)
    site.wait_for("the log", lambda: "Running entrypoint" in second.output, second)
    second.process.send_signal(signal.SIGINT)
    said = {"second": second.wait(130), "other": other.wait(2)}
    return said | {"first": first.wait(0), "id": first.id, "revision": revision}


def test_a_submitted_distillation_trains_on_two_hosts_and_publishes(site: Site, distilled: dict[str, str]) -> None:
    assert "published learngene digits" in distilled["first"]
    manifest = site.store.manifest("learngene", "digits")
    assert manifest.metadata["config"]["workers"] == 2 and manifest.metadata["cost"]["steps"] == 11
    assert manifest.metadata["git_revision"] == (distilled["revision"] or None)


def test_the_same_job_submitted_twice_is_one_job_and_ctrl_c_leaves_it(distilled: dict[str, str]) -> None:
    assert f"job {distilled['id']} is running already: following it" in distilled["second"]
    assert f"job {distilled['id']} goes on" in distilled["second"].splitlines()[-1]
    assert f"ray job stop {distilled['id']}" in distilled["second"].splitlines()[-1]


def test_other_settings_under_a_name_that_is_running_are_refused(distilled: dict[str, str]) -> None:
    (line,) = distilled["other"].strip().splitlines()
    assert f"job {distilled['id']} is doing distill under this name with other settings" in line


@pytest.fixture(scope="module")
def swept(site: Site, distilled: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the submission of a sweep said."""
    recipe = site.recipe(tmp_path_factory.mktemp("recipes"))
    words = ["--config", recipe, "--name", "digits", "--learngene", "digits", "--depths", "1-2"]
    return site.submit("sweep", *words, "--arms", "sws", "--epochs", 1, "--latency-threads", 1).wait()


def test_a_submitted_sweep_is_pulled(site: Site, swept: str, tmp_path: Path) -> None:
    assert "sweep digits: 2 descendants to train" in swept
    assert len(site.descendants("digits")) == 2
    ran = subprocess.run(
        [sys.executable, "-m", "ray_learngene", "pull", "--store", site.uri, "--out", str(tmp_path / "best")],
        env=site.environment(),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "best" / "model.safetensors").exists()


def test_a_submitted_pull_leaves_the_model_on_the_head(site: Site, swept: str) -> None:
    assert "--out is required for `submit pull`" in site.submit("pull", "--max-params", "1M").wait(2)
    out = site.cluster.head.folder / "best"
    said = site.submit("pull", "--max-params", "1M", "--out", out).wait()
    assert "pulled descendants/digits/" in said
    manifest = next(one for one in site.store.manifests("descendant") if f"descendants/{one.name} " in said)
    entry = manifest.entry("model.safetensors")
    assert entry is not None
    assert hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() == entry.sha256


def test_a_submitted_benchmark_is_compared_from_outside(site: Site, distilled: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        site.recipe(tmp_path).read_text().replace("lr: 4.0e-3\n", "")
        + "arms: {sws: {method: 'sws:stages=1-1'}, scratch: {method: scratch, tune: full}}\n"
    )
    words = ["--config", recipe, "--name", "both", "--ancestry", "store:ancestries/digits", "--preset", "nano"]
    words += ["--depth", 2, "--depths", "1-2", "--seeds", 1, "--lrs", "4e-3", "--tune-lrs", "1e-3"]
    words += ["--epochs", 1, "--tune-epochs", 1]
    said = site.submit("bench", *words, "--out", site.cluster.head.folder / "both").wait()
    assert "benchmark both: 4 descendants; see " in said
    page = (site.cluster.head.folder / "both" / "results.md").read_text()
    ran = subprocess.run(  # all of it is in the store: the same table is made of it anywhere
        [sys.executable, "-m", "ray_learngene", "bench", *map(str, words), "--store", site.uri]
        + ["--in-process", "--out", str(tmp_path / "both")],
        env=site.environment(),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "0 descendants to train" in ran.stdout
    assert (tmp_path / "both" / "results.md").read_text() == page


def test_a_failed_job_gives_its_exit_status_and_is_a_new_attempt_when_submitted_again(
    site: Site, distilled: dict[str, str]
) -> None:
    words = ["extract", "--name", "x", "--source", "store:ancestries/missing", "--method", "heur-lg"]
    first, again = (site.submit(*words).wait(2) for _ in range(2))
    assert "learngene: error: no ancestry 'missing' in " in first and "there is digits" in first
    assert ".1 failed" in first.splitlines()[-1] and ".2 failed" in again.splitlines()[-1]
    assert "attempt 2: it continues what is in the store" in again


def test_no_secret_is_shown(site: Site, distilled: dict[str, str]) -> None:
    import requests

    environment = site.cluster.environment()
    secrets = [environment["AWS_SECRET_ACCESS_KEY"], Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()]
    headers = {"Authorization": f"Bearer {secrets[1]}"}
    shown = requests.get(f"{site.cluster.job_server}/api/jobs/", headers=headers, timeout=30).text
    assert distilled["id"] in shown and environment["AWS_ENDPOINT_URL"] in shown
    logs = "".join(
        path.read_text(errors="replace") for path in site.cluster.head.folder.glob("tmp/ray/session_2*/logs/*.*")
    )
    assert "published learngene digits" in logs
    for secret in secrets:
        assert secret not in shown and secret not in logs and secret not in "".join(distilled.values())


@pytest.mark.parametrize(
    "change",
    [
        {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN_PATH": None},
        {"RAY_AUTH_TOKEN_PATH": None},
        {"RAY_AUTH_TOKEN_PATH": "/nowhere/token"},
        {"RAY_AUTH_TOKEN": "wrong"},
    ],
    ids=["nothing", "no token", "no file", "wrong"],
)
def test_a_missing_or_wrong_token_is_one_line(site: Site, change: dict[str, str | None], tmp_path: Path) -> None:
    environment = site.environment() | {"HOME": str(tmp_path)}  # Ray keeps a token there
    for name, value in change.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    words = [
        "extract",
        "--name",
        "x",
        "--source",
        "store:ancestries/digits",
        "--method",
        "heur-lg",
        "--store",
        site.uri,
    ]
    said = Job(words, environment).wait(2)
    assert len(said.strip().splitlines()) == 1, said
    assert "wants its token: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE" in said


@pytest.mark.parametrize("change", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "wrong"}], ids=["none", "wrong"])
def test_a_driver_on_the_head_needs_the_token_too(
    site: Site, distilled: dict[str, str], change: dict[str, str]
) -> None:
    words = ["distill", "--data", "digits", "--name", "y", "--ancestry", "store:ancestries/digits", "--preset", "nano"]
    words += ["--method", "sws:stages=1-1", "--warmup-epochs", "0", "--store", site.uri, "--check-images", "off"]
    words += ["--batch-size", "128", "--address", f"{site.cluster.head.address}:6379"]
    command, environment = site.cluster.command_on("head", [sys.executable, "-m", "ray_learngene", *words])
    ran = subprocess.run(command, env={**environment, **change}, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stderr
    assert "wants its token: export RAY_AUTH_MODE=token" in ran.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ran.stderr
