"""Weight selection: a small model from evenly spaced weights of a larger one (Xu et al., ICLR 2024, arXiv 2311.18823).

A smaller model of depth N takes the first N layers of a trained model of the same family. From every dimension of the
trained model it takes as many evenly spaced indices as it has itself. q, k and v are selected separately, as in the
paper. The authors' release takes indices of the whole qkv matrix (`qkv=joint`), which are the same where sizes divide.
The head is not inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ray_learngene.config.base import LATER
from ray_learngene.errors import UserError
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


def selection_of(
    source: Spec, *, whole: bool = False, joint: bool = False
) -> Callable[[Tensor, int, int, Axis], Tensor]:
    """Return the function that reduces one axis of a parameter of `source` to evenly spaced entries of every group.

    Args:
        whole: Choose whole heads, as is done where positions act on the channels of a head.
        joint: Choose among the entries of all groups at once.
    """
    whole = whole or family(source).whole_heads

    def selected(tensor: Tensor, dim: int, size: int, axis: Axis) -> Tensor:
        groups = 1 if joint else axis.groups
        have, want = tensor.shape[dim] // groups, size // groups
        if axis.kind == "attention" and whole:
            head = source.width // source.heads
            indices = evenly_spaced_heads(have // head, want // head, head)
        else:
            indices = evenly_spaced(want, have)
        return tensor.index_select(dim, torch.cat([indices + part * have for part in range(groups)]))

    return selected


class WeightSelection(InheritingMethod):
    """Evenly spaced weights of a larger trained model."""

    name: ClassVar[str] = "weight-selection"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"heads", "qkv"})

    heads: Literal["mixed", "whole"] = Field(
        "mixed", description="mixed (the paper's): evenly spaced channels of q, k and v; whole: evenly spaced heads"
    )
    qkv: Literal["separate", "joint"] = Field(
        "separate",
        description="separate (the paper's): q, k and v one by one; joint (the release's): their one matrix",
        json_schema_extra=LATER,
    )

    @model_validator(mode="after")
    def _whole_heads_are_separate(self) -> Self:
        if self.heads == "whole" and self.qkv == "joint":
            raise ValueError("whole heads are chosen of q, k and v one by one: leave qkv=joint out")
        return self

    def kept(self, tensors: State, source: Spec) -> State:
        """Store everything but the head, which is fresh even at the same width, as in the paper."""
        return {name: tensor for name, tensor in tensors.items() if not is_head(name, source)}

    def inherited(self, tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> State:
        require_order("weight selection", source, spec, grows=False)
        require_same("weight selection", source, spec, "patch")
        require_head_size("weight selection", source, spec)
        if self.qkv == "joint" and family(source).whole_heads:
            raise UserError(
                f"weight selection takes q, k and v of {source.architecture} one by one, as positions act on the "
                "channels of its heads: leave qkv=joint out"
            )
        state = singletons(tensors, source, spec)
        state |= inherited_blocks(tensors, source, spec, lambda depth, of: range(min(depth, of)))
        return sliced(state, source, spec, selection_of(source, whole=self.heads == "whole", joint=self.qkv == "joint"))
