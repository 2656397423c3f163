"""Models without memory: on torch's meta device, and without the time that filling their parameters takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ray_learngene.errors import TooLarge

# What initialisation calls. On the meta device some of these take a hundred times as long as making the parameter.
_FILLS = frozenset(
    getattr(Tensor, name)
    for name in ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "div_", "add_", "sub_", "zero_", "fill_", "copy_")
)


class _Unfilled(TorchFunctionMode):
    """Return tensors of the meta device as they are where a function would fill them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Build models on the meta device: shapes and structure, no values."""
    with torch.device("meta"), _Unfilled():
        yield


def require_memory(need: int, what: str) -> None:
    """Refuse what does not fit into this machine's memory, before the system ends the process.

    Args:
        need: Bytes.
        what: Takes them, as in "swin_tiny: its weights take".

    Raises:
        TooLarge: says how much it is, and how much there is.
    """
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise TooLarge(
            f"{what} {need / 1e9:,.1f} GB, this machine has {have / 1e9:,.1f} GB of memory: choose a smaller size"
        )


def require_memory_for(sketch: nn.Module, name: str) -> None:
    """Refuse a model on the meta device whose weights alone do not fit into this machine's memory.

    Raises:
        TooLarge: they do not.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in sketch.parameters())
    require_memory(weights, f"{name}: its weights take")
