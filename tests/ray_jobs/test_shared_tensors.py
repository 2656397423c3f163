"""What many workers of a host need is in its memory once."""

from __future__ import annotations

import subprocess
import sys

from tests.ray_jobs.conftest import ROOT

DRIVER = """
import sys
from pathlib import Path

from ray_learngene.cluster.session import ray_cluster
import ray
from torch import nn


def memory_of(models):
    address = next(ray.get(models[0]).parameters()).data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, end = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < end:
            return line


with ray_cluster(sys.argv[1]):
    print(ray.get(ray.remote(memory_of).remote([ray.put(nn.Linear(512, 512))])))
"""


def test_a_model_that_ray_sends_is_read_where_ray_keeps_it(head: tuple[str, str]) -> None:
    """In a process of its own, since Ray takes the setting when it is first imported."""
    command = [sys.executable, "-c", DRIVER, head[0]]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert said.returncode == 0, said.stderr
    assert "/dev/shm/plasma" in said.stdout
    assert "Warning" not in said.stderr
