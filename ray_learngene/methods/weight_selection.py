"""Weight selection: a small model from evenly spaced weights of a larger one (Xu et al., ICLR 2024, arXiv 2311.18823).

A smaller model of depth N takes the first N layers of a trained model of the same family. From every dimension of the
trained model it takes as many evenly spaced indices as it has itself. q, k and v are selected separately. The head is
not inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ray_learngene.methods.generated import State
from ray_learngene.methods.shared_weights import (
    inherited_blocks,
    is_head,
    require_head_size,
    require_same,
    singletons,
    sliced,
)
from ray_learngene.methods.trained_source import InheritingMethod, require_order
from ray_learngene.models.layout import Axis, family
from ray_learngene.models.specs import Spec


def evenly_spaced(small: int, large: int) -> Tensor:
    """Choose `small` ascending indices into a dimension of size `large`: every n-th, or the nearest to equal steps."""
    if large % small == 0:
        return torch.arange(small) * (large // small)
    return torch.linspace(0, large - 1, small).round().long()


def evenly_spaced_heads(source: int, heads: int, size: int) -> Tensor:
    """Return the channel indices of `heads` whole heads of `size` channels, evenly spaced among the source's."""
    return (evenly_spaced(heads, source)[:, None] * size + torch.arange(size)).flatten()


def selection_of(source: Spec, *, whole: bool = False) -> Callable[[Tensor, int, int, Axis], Tensor]:
    """Return the function that reduces one axis of a parameter of `source` to evenly spaced entries of every group.

    Args:
        whole: Choose whole heads, as is done where positions act on the channels of a head.
    """
    whole = whole or family(source).whole_heads

    def selected(tensor: Tensor, dim: int, size: int, axis: Axis) -> Tensor:
        have, want = tensor.shape[dim] // axis.groups, size // axis.groups
        if axis.kind == "attention" and whole:
            head = source.width // source.heads
            indices = evenly_spaced_heads(have // head, want // head, head)
        else:
            indices = evenly_spaced(want, have)
        return tensor.index_select(dim, torch.cat([indices + part * have for part in range(axis.groups)]))

    return selected


class WeightSelection(InheritingMethod):
    """Evenly spaced weights of a larger trained model."""

    name: ClassVar[str] = "weight-selection"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"heads"})

    heads: Literal["mixed", "whole"] = Field(
        "mixed", description="mixed (the paper's): evenly spaced channels of q, k and v; whole: evenly spaced heads"
    )

    def kept(self, tensors: State, source: Spec) -> State:
        """Store everything but the head, which is fresh even at the same width, as in the paper."""
        return {name: tensor for name, tensor in tensors.items() if not is_head(name, source)}

    def inherited(self, tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> State:
        require_order("weight selection", source, spec, grows=False)
        require_same("weight selection", source, spec, "patch")
        require_head_size("weight selection", source, spec)
        state = singletons(tensors, source, spec)
        state |= inherited_blocks(tensors, source, spec, lambda depth, of: range(min(depth, of)))
        return sliced(state, source, spec, selection_of(source, whole=self.heads == "whole"))
