"""Parts of a cluster are killed in the middle of the work: nothing is lost, and the result is that of a quiet run.

    pytest -m hosts tests/hosts/test_kills.py            all, about ten minutes on two cores
    pytest -m hosts tests/hosts/test_kills.py::test_...  one

The rows that they print are the table of docs/fault-tolerance.md.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ray_learngene.config import AncestryConfig
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.methods.base import Learngene
from tests.hosts.site import Job, Site, find

pytestmark = pytest.mark.hosts
HOSTS = 3
EVERY = 3  # steps between checkpoints
EPOCHS, STEPS = 4, 44
MIDDLE = 18  # strike once a checkpoint of this step is in the store
DIFFERENCE = 2e-4  # largest of any weight after another number of workers: sums are rounded in another order


@pytest.fixture(scope="module")
def recipe(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all distillations and sweeps have in common; the ancestry model is in the store."""
    folder = tmp_path_factory.mktemp("recipes")
    size = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}
    train_ancestry(
        AncestryConfig(
            data="digits",
            name="digits",
            store=site.uri,
            workers=0,
            epochs=2,
            warmup_epochs=0,
            batch_size=128,
            lr=4e-3,
            model="deit_tiny_patch16_224",
            model_args={**size, "class_token": False, "global_pool": "avg"},
        )
    )
    return site.recipe(folder)


Distill = Callable[..., Job]


@pytest.fixture(scope="module")
def distill(site: Site, recipe: Path) -> Distill:
    def start(name: str, workers: int = 2, zero: int = 0) -> Job:
        words = ["distill", "--config", recipe, "--name", name, "--ancestry", "store:ancestries/digits"]
        words += ["--preset", "nano", "--method", "sws:stages=1-1-1", "--epochs", EPOCHS]
        words += ["--checkpoint-every", EVERY, "--checkpoint-uploads", "wait"]  # else a step is faster than an upload
        return site.submit(*words, "--workers", workers, "--zero", zero)

    return start


@pytest.fixture(scope="module")
def quiet(site: Site, distill: Distill) -> str:
    """Weights of the undisturbed run."""
    distill("quiet").wait()
    return site.weights("quiet")


def all_on(site: Site) -> None:
    for host in site.cluster.hosts:
        site.cluster.on(host)
    site.cluster.wait_for_nodes(1 + HOSTS)


def struck(site: Site, strike: dict[str, str], what: str, name: str, job: Job) -> Callable[[], None]:
    """Wait for the middle of a distillation; the value waits for its next checkpoint and notes how long it took."""
    site.wait_for_step(name, MIDDLE, job)
    step, began = site.checkpoint_step(f"learngene-{name}"), time.monotonic()

    def continued() -> None:
        site.wait_for("going on", lambda: site.checkpoint_step(f"learngene-{name}") > step + EVERY)
        strike.update(
            {
                "what": what,
                "when": f"distillation, step {step} of {STEPS}",
                "lost": f"at most {EVERY} steps",
                "until it continued": f"{time.monotonic() - began:.0f} s",
            }
        )

    return continued


def test_kill_9_of_a_training_worker(site: Site, distill: Distill, quiet: str, strike: dict[str, str]) -> None:
    all_on(site)
    job = distill("worker")
    continued = struck(site, strike, "a training worker (`kill -9`)", "worker", job)
    find(site.training_hosts()[0], "ray::.*TrainWorker")[0].kill()
    continued()
    job.wait()
    assert site.weights("worker") == quiet
    strike["final result"] = "the same bits"


def test_power_off_of_a_worker_host_and_it_comes_back(
    site: Site, distill: Distill, quiet: str, strike: dict[str, str]
) -> None:
    all_on(site)
    job = distill("host")
    continued = struck(site, strike, "a worker host (power off), another one is free", "host", job)
    victim = site.training_hosts()[0]
    site.cluster.off(victim.name)
    continued()
    site.cluster.on(victim.name)
    job.wait()
    assert site.weights("host") == quiet
    strike["final result"] = "the same bits"
    site.cluster.wait_for_nodes(1 + HOSTS)


def test_power_off_of_a_worker_host_without_a_spare_one(
    site: Site, distill: Distill, quiet: str, strike: dict[str, str]
) -> None:
    all_on(site)
    site.cluster.off("worker-3")
    site.cluster.wait_for_nodes(HOSTS)
    job = distill("spare")
    continued = struck(site, strike, "a worker host of two (power off), on again when Ray knows", "spare", job)
    victim = site.training_hosts()[0]
    site.cluster.off(victim.name)
    site.cluster.wait_for_nodes(HOSTS - 1)
    site.cluster.on(victim.name)
    continued()
    job.wait()
    assert site.weights("spare") == quiet
    strike["final result"] = "the same bits"


def test_fewer_hosts_afterwards(site: Site, distill: Distill, quiet: str, strike: dict[str, str]) -> None:
    all_on(site)
    job = distill("fewer", zero=1)  # the moments are split over two workers, later one has them all
    continued = struck(site, strike, "two of three worker hosts, for good (ZeRO-1)", "fewer", job)
    for host in site.training_hosts():
        site.cluster.off(host.name)
    site.cluster.wait_for_nodes(HOSTS - 1)
    stop(site, job)
    again = distill("fewer", workers=1, zero=1)
    continued()
    again.wait()
    one, two = (
        Learngene.from_bytes(
            *(site.store.read_bytes("learngene", each, f"learngene.{kind}") for kind in ("safetensors", "json"))
        )
        for each in ("fewer", "quiet")
    )
    for key, tensor in one.tensors.items():
        torch.testing.assert_close(tensor, two.tensors[key], rtol=0, atol=DIFFERENCE)
    largest = max(float((tensor - two.tensors[key]).abs().max()) for key, tensor in one.tensors.items())
    strike["final result"] = f"weights within {largest:.0e} (bound {DIFFERENCE:g})"


def stop(site: Site, job: Job) -> None:
    """Stop a job by Ray's own means."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", job.id]
    subprocess.run([*command, "--address", site.cluster.job_server], env=site.environment(), check=True, timeout=120)
    job.wait(1)


def test_kill_9_of_the_driver(site: Site, distill: Distill, quiet: str, strike: dict[str, str]) -> None:
    all_on(site)
    job = distill("driver")
    continued = struck(site, strike, "the driver (`kill -9`), the job submitted again", "driver", job)
    for process in find(site.cluster.head, "ray_learngene distill"):
        process.kill()
    assert "submit it again to continue" in job.wait(128 + signal.SIGKILL)
    again = distill("driver")
    continued()
    assert "continuing the run driver" in again.wait()
    assert site.weights("driver") == quiet
    strike["final result"] = "the same bits"


def test_power_off_of_the_head(site: Site, distill: Distill, quiet: str, strike: dict[str, str]) -> None:
    all_on(site)
    job = distill("head")
    continued = struck(site, strike, "the head (power off, on again), the job submitted again", "head", job)
    site.cluster.off("head")
    site.cluster.on("head")
    assert "was lost with the head" in job.wait(1)
    site.cluster.wait_for_nodes(1 + HOSTS)
    again = distill("head")
    continued()
    assert "continuing the run head" in again.wait()
    assert site.weights("head") == quiet
    strike["final result"] = "the same bits"


@pytest.fixture(scope="module")
def sweep(site: Site, recipe: Path, quiet: str) -> Callable[[str], Job]:
    def start(name: str) -> Job:
        words = ["sweep", "--config", recipe, "--name", name, "--learngene", "quiet", "--depths", "1-3"]
        words += ["--arms", "sws", "scratch", "--scratch", "epochs"]
        words += ["--siblings", "1"]  # side by side they would end at once
        return site.submit(*words, "--epochs", 8, "--latency-threads", 1)

    return start


@pytest.fixture(scope="module")
def quiet_sweep(site: Site, sweep: Callable[[str], Job]) -> dict[str, str]:
    """Weights of the undisturbed descendants."""
    all_on(site)
    sweep("quiet").wait()
    return {name: weights for name, (_, weights) in site.descendants("quiet").items()}


@pytest.mark.parametrize("what", ["the driver", "the head", "a worker host"])
def test_killed_during_a_sweep(
    site: Site, sweep: Callable[[str], Job], quiet_sweep: dict[str, str], strike: dict[str, str], what: str
) -> None:
    all_on(site)
    name = what.replace(" ", "-")
    job = sweep(name)
    site.wait_for("two descendants", lambda: len(site.descendants(name)) >= 2, job)
    finished, began = site.descendants(name), time.monotonic()
    if what == "the driver":
        for process in find(site.cluster.head, "ray_learngene sweep"):
            process.kill()
        job.wait(128 + signal.SIGKILL)
        finished = site.descendants(name)
        job = sweep(name)
    elif what == "the head":
        site.cluster.off("head")
        site.cluster.on("head")
        job.wait(1)
        site.cluster.wait_for_nodes(1 + HOSTS)
        finished = site.descendants(name)
        job = sweep(name)
    else:
        site.cluster.off("worker-1")
    site.wait_for("another descendant", lambda: len(site.descendants(name)) > len(finished), job)
    seconds = time.monotonic() - began
    job.wait()
    after = site.descendants(name)
    assert {each: after[each] for each in finished} == finished  # none was trained again
    assert {each: weights for each, (_, weights) in after.items()} == quiet_sweep
    strike.update(
        {
            "what": f"{what} ({'kill -9' if what == 'the driver' else 'power off'})"
            + ("" if what == "a worker host" else ", the job submitted again"),
            "when": f"sweep, {len(finished)} of {len(after)} descendants finished",
            "lost": "no finished descendant; the others from their last epoch",
            "until it continued": f"{seconds:.0f} s",
            "final result": "the same bits",
        }
    )


def test_two_sweeps_into_one_store_at_once(
    site: Site, sweep: Callable[[str], Job], quiet_sweep: dict[str, str]
) -> None:
    all_on(site)
    jobs = [sweep(name) for name in ("left", "right")]
    for job in jobs:
        job.wait()
    for name in ("left", "right"):
        assert {each: weights for each, (_, weights) in site.descendants(name).items()} == quiet_sweep
        saved = site.store.read_table(f"sweeps/{name}/results.parquet").to_pandas()
        assert sorted(saved["descendant"]) == sorted(quiet_sweep)
