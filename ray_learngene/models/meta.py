"""Models without memory: on torch's meta device, and without the time that filling their parameters takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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
