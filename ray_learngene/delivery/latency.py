"""The latency of a model in eager torch on the device at hand, by the procedure of measure.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from ray_learngene.delivery import measure as clock
from ray_learngene.models.build import build
from ray_learngene.models.costs import require_room
from ray_learngene.models.device import resolve_device
from ray_learngene.models.specs import Spec

REPEATABLE = 1.5  # the spread of a measurement that another one would confirm
_SECONDS, _BLOCK = 0.2, 0.01  # of the passes of one size, unless its rounds take longer, and of a block of them


@dataclass(frozen=True)
class Latency:
    """A measured latency of one forward pass and what it was measured on.

    Attributes:
        clock: "cpu" on one thread of a CPU, which other programs hardly change; else "wall".
        wall_ms: The median by the clock.
        spread: The slowest of three parts of the passes over the fastest, by their medians.
    """

    median_ms: float
    p90_ms: float
    batch: int
    dtype: str
    threads: int
    device: str
    runs: int
    spread: float = 1.0
    clock: str = "wall"
    wall_ms: float | None = None


def measure_latency(spec: Spec, *, batch: int = 1, dtype: torch.dtype = torch.float32, threads: int = 1) -> Latency:
    """Time forward passes of the model of a spec on the device at hand: ten blocks of a hundredth of a second at least.

    Args:
        threads: Number of CPU threads for torch.

    Raises:
        TooLarge: the batch does not fit into this machine's memory.
    """
    device = resolve_device()
    gpu = device.type == "cuda"
    if not gpu:
        require_room(spec, batch)
    model = build(spec).to(device=device, dtype=dtype).eval()
    images = torch.rand(batch, *spec.image, device=device, dtype=dtype)
    which = "wall" if gpu or threads > 1 else "cpu"
    before = torch.get_num_threads()
    with torch.inference_mode():
        try:
            torch.set_num_threads(threads)
            wait = partial(torch.cuda.synchronize, device) if gpu else None
            runs = {"": partial(model, images)}
            timed = clock.time_all(runs, _SECONDS, which, wait, block=_BLOCK, least=clock.LEAST_ROUNDS)[""]
        finally:
            torch.set_num_threads(before)
    return Latency(
        median_ms=timed["latency_ms"],
        p90_ms=timed["p90_ms"],
        batch=batch,
        dtype=str(dtype).removeprefix("torch."),
        threads=threads,
        device=device_name(device),
        runs=timed["runs"],
        spread=1 + timed["spread"],
        clock=which,
        wall_ms=timed["wall_ms"],
    )


def device_name(device: torch.device) -> str:
    """The name of a device's hardware, as tables and plans state it; that of a CPU begins with "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {clock.cpu_name()}"
