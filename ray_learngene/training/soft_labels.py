"""Soft labels: the ancestry model's logits in a form small enough to cache for hundreds of epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KeptType = Literal["float16", "float32"]


@dataclass(frozen=True)
class SoftLabels:
    """The k highest logits of a batch of views and the mass of all other classes; they give soft labels at any τ.

    In float32 the logits are stored unchanged, in float16 as differences to the highest logit. Softmax ignores the
    offset, and float16 is most precise where probabilities are large. The other logits are stored as one sum, which is
    spread evenly over their classes.

    At τ = 1 the total variation from the probabilities of the full logits is at most the mass outside the k highest. In
    float16 it is at most ln(classes) / 2048 larger. The total variation is half the error of the loss's gradient with
    respect to the student's logits. The ancestry model's prediction, the highest logit, does not change.

    Attributes:
        values: The k highest logits `[B, k]`, descending. If k covers all classes, all logits in the order of classes.
        classes: Classes of these logits `[B, k]`, signed integers; None if `values` holds all.
        rest: Logarithm of the sum of the exponentials of the other logits `[B]`; None if there are none.
        total: Number of classes.
        asked: Whether they come from a teacher forward pass just now, and not from the cache.
    """

    values: Tensor
    classes: Tensor | None
    rest: Tensor | None
    total: int
    asked: bool = False

    @classmethod
    def of(cls, logits: Tensor, k: int, dtype: KeptType) -> SoftLabels:
        """Compress logits `[B, classes]` of a teacher forward pass to the k highest."""
        logits = logits.float()
        total = logits.shape[-1]
        if dtype == "float16":
            logits = logits - logits.amax(dim=-1, keepdim=True)
        if k >= total:
            return cls(_as(logits, dtype), None, None, total, asked=True)
        values, classes = logits.topk(k, dim=-1)
        rest = logits.scatter(-1, classes, -math.inf).logsumexp(dim=-1)
        narrow = torch.int16 if total <= torch.iinfo(torch.int16).max else torch.int32
        return cls(_as(values, dtype), classes.to(narrow), _as(rest, dtype), total, asked=True)

    def logits(self) -> Tensor:
        """Restore logits `[B, classes]` in fp32."""
        values = self.values.float()
        if self.classes is None or self.rest is None:
            return values
        share = self.rest.float() - math.log(self.total - values.shape[-1])
        share = torch.minimum(share, values[:, -1])  # rounding must not lift the others above the k highest
        return share[:, None].repeat(1, self.total).scatter_(-1, self.classes.long(), values)

    def to(self, device: torch.device, non_blocking: bool = False) -> SoftLabels:
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SoftLabels:
        return self._each(Tensor.pin_memory)

    def __getitem__(self, rows: slice | Tensor) -> SoftLabels:
        return self._each(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(self.values)

    def _each(self, change: Callable[[Tensor], Tensor]) -> SoftLabels:
        classes = None if self.classes is None else change(self.classes)
        rest = None if self.rest is None else change(self.rest)
        return SoftLabels(change(self.values), classes, rest, self.total, self.asked)


def joined(parts: Sequence[SoftLabels]) -> SoftLabels:
    """Concatenate the rows of several soft labels."""
    first = parts[0]
    return SoftLabels(
        torch.cat([part.values for part in parts]),
        None if first.classes is None else torch.cat([part.classes for part in parts if part.classes is not None]),
        None if first.rest is None else torch.cat([part.rest for part in parts if part.rest is not None]),
        first.total,
    )


def _as(logits: Tensor, dtype: KeptType) -> Tensor:
    torch_dtype: torch.dtype = getattr(torch, dtype)
    return logits.clamp(min=torch.finfo(torch_dtype).min).to(torch_dtype)
