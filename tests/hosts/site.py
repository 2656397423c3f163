"""What the tests do to a local cluster: submit jobs, watch the store, strike."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from cluster.local import LocalCluster
from cluster.local.host import Host
from ray_learngene.io.objects import Objects
from ray_learngene.store.store import Store

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds that any one thing may take on a busy machine
RECIPE = """
data: digits
batch_size: 128
lr: 4.0e-3
warmup_epochs: 0
drop_path: 0.0
hflip: 0.0
scale: [0.9, 1.0]
"""


class Job:
    """A running `learngene submit`."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray_learngene", "submit", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
            # a shell's background jobs, and so their children, ignore SIGINT
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def id(self) -> str:
        found = re.search(r"job ([\w.-]+)", self.output)
        assert found, self.output
        return found[1]

    def wait(self, status: int = 0) -> str:
        """Wait until it ends with this exit status; returns what it printed."""
        try:
            ended = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"not ended after {PATIENCE} s:\n{self.output}") from None
        self._reader.join(PATIENCE)
        assert ended == status, self.output
        return self.output


class Site:
    """A cluster with its store."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.uri = f"{cluster.store}/{uuid.uuid4().hex[:8]}"
        self._objects = Objects(self.uri)

    @property
    def store(self) -> Store:
        return Store(self.uri)

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        return {**clean, **self.cluster.environment(), "PYTHONPATH": str(ROOT)}

    def submit(self, *words: object) -> Job:
        return Job([*map(str, words), "--store", self.uri], self.environment())

    def recipe(self, folder: Path) -> Path:
        path = folder / "recipe.yaml"
        path.write_text(RECIPE)
        return path

    def checkpoint_step(self, run: str) -> int:
        """Return the step of a run's newest checkpoint in the store, 0 without one."""
        steps = [0]
        for path in self._objects.find(f"runs/{run}"):
            if path.endswith("/progress.json"):
                text = self._objects.read(path)
                if text is not None:  # else an old one that has just been removed
                    steps.append(json.loads(text)["step"])
        return max(steps)

    def wait_for(self, what: str, holds: Callable[[], bool], job: Job | None = None) -> None:
        """Poll until something holds; fails when the job that should bring it about ends before."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            ended = job is not None and job.process.poll() is not None
            assert not ended or holds(), f"ended before {what}:\n{job and job.output}"
            assert time.monotonic() < deadline, f"{what} did not happen in {PATIENCE} s:\n{job and job.output}"
            time.sleep(0.5)

    def wait_for_step(self, name: str, step: int, job: Job) -> None:
        """Wait until a distillation has a checkpoint of this step or a later one."""
        self.wait_for(f"step {step}", lambda: self.checkpoint_step(f"learngene-{name}") >= step, job)

    def weights(self, name: str) -> str:
        """SHA-256 of a learngene's weights."""
        entry = self.store.manifest("learngene", name).entry("learngene.safetensors")
        assert entry is not None
        return entry.sha256

    def descendants(self, sweep: str) -> dict[str, tuple[str, str]]:
        """When each descendant was published, and the SHA-256 of its weights."""
        found = {}
        for manifest in self.store.manifests("descendant", under=sweep):
            entry = manifest.entry("model.safetensors")
            assert entry is not None
            found[manifest.name.split("/")[1]] = (manifest.created, entry.sha256)
        return found

    def training_hosts(self) -> list[Host]:
        """Worker hosts on which a training worker runs."""
        return [host for host in self.cluster.workers if find(host, "ray::.*TrainWorker")]


def find(host: Host, pattern: str) -> list[psutil.Process]:
    """Processes of a host whose command line matches."""
    found = []
    for process in host.processes():
        try:
            if re.search(pattern, " ".join(process.cmdline())):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
