"""The device that this process computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_allowed = True


def allow_gpu(allowed: bool) -> None:
    """Allow or forbid this process its GPUs; they are allowed by default.

    CUDA_VISIBLE_DEVICES would change nothing once torch has counted the GPUs.
    """
    global _allowed
    _allowed = allowed


@contextmanager
def gpu_allowed(allowed: bool | None) -> Iterator[None]:
    """Call `allow_gpu` for a while; None changes nothing."""
    before = _allowed
    if allowed is not None:
        allow_gpu(allowed)
    try:
        yield
    finally:
        allow_gpu(before)


def resolve_device() -> torch.device:
    """Return the GPU of this process if it has one, else the CPU."""
    return torch.device("cuda" if _allowed and torch.cuda.is_available() else "cpu")
