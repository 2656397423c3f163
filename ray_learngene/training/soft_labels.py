"""What is kept of the ancestry model's logits, small enough for hundreds of epochs, and the logits it stands for."""

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
    """The highest logits of a batch of views and the mass of all others, from which soft labels at any τ follow.

    In float32 the logits are kept as they are, in float16 as differences to the highest, which softmax does not see and
    which float16 resolves best where probabilities are large. What is not kept is one sum, spread evenly over the other
    classes. At τ = 1 the total variation between the probabilities and those of the whole logits is at most the mass
    that is not among the k highest, and in float16 ln(classes) / 2048 more: half the error of the loss's gradient with
    respect to the student's logits. The ancestry's decision, the highest logit, stays what it is.

    Attributes:
        values: The k highest logits, falling, `[B, k]`; with k of all classes, all of them in the order of the classes.
        classes: Of these logits `[B, k]`, signed integers; None where they are all.
        rest: Logarithm of the sum of the exponentials of the other logits `[B]`; None where there are none.
        total: Number of classes.
        asked: Whether the ancestry model has just been asked, and nobody before.
    """

    values: Tensor
    classes: Tensor | None
    rest: Tensor | None
    total: int
    asked: bool = False

    @classmethod
    def of(cls, logits: Tensor, k: int, dtype: KeptType) -> SoftLabels:
        """Keep the k highest of the logits `[B, classes]` that the ancestry model has just given."""
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
        """Logits `[B, classes]` in fp32 that these soft labels stand for."""
        values = self.values.float()
        if self.classes is None or self.rest is None:
            return values
        share = self.rest.float() - math.log(self.total - values.shape[-1])
        share = torch.minimum(share, values[:, -1])  # rounding must not lift the others above what was kept
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
    """The rows of several, one after another."""
    first = parts[0]
    return SoftLabels(
        torch.cat([part.values for part in parts]),
        None if first.classes is None else torch.cat([part.classes for part in parts if part.classes is not None]),
        None if first.rest is None else torch.cat([part.rest for part in parts if part.rest is not None]),
        first.total,
    )


def _as(logits: Tensor, dtype: KeptType) -> Tensor:
    kept: torch.dtype = getattr(torch, dtype)
    return logits.clamp(min=torch.finfo(kept).min).to(kept)
