"""The device that this process computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_allowed = True


def allow_gpu(allowed: bool) -> None:
    """Say whether this process may compute on a GPU that it sees, as it does until told otherwise.

    Not by CUDA_VISIBLE_DEVICES, which changes nothing once torch has counted the GPUs.
    """
    global _allowed
    _allowed = allowed


@contextmanager
def gpu_allowed(allowed: bool | None) -> Iterator[None]:
    """`allow_gpu` for a while; None changes nothing."""
    before = _allowed
    if allowed is not None:
        allow_gpu(allowed)
    try:
        yield
    finally:
        allow_gpu(before)


def resolve_device() -> torch.device:
    """The GPU of this process where it has one, else the CPU."""
    return torch.device("cuda" if _allowed and torch.cuda.is_available() else "cpu")
