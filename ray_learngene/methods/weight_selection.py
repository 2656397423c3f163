"""Weight selection: a small model from evenly spaced weights of a larger one (Xu et al., ICLR 2024, arXiv 2311.18823).

A smaller model of depth N takes the first N layers of a trained model of the same family. From every dimension of the
trained model it takes as many evenly spaced indices as it has itself. q, k and v are selected separately. The head is
not inherited.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ray_learngene.methods.generated import State
from ray_learngene.methods.shared_weights import blocks_of, require_head_size, require_same, singletons
from ray_learngene.methods.trained_source import InheritingMethod, require_order
from ray_learngene.models.specs import Spec


def evenly_spaced(small: int, large: int) -> Tensor:
    """Choose `small` ascending indices into a dimension of size `large`: every n-th, or the nearest to equal steps."""
    if large % small == 0:
        return torch.arange(small) * (large // small)
    return torch.linspace(0, large - 1, small).round().long()


def evenly_spaced_heads(source: Spec, spec: Spec) -> Tensor:
    """Return the channel indices of whole heads, evenly spaced among the source's heads."""
    size = source.width // source.heads
    heads = evenly_spaced(spec.heads, source.heads)
    return (heads[:, None] * size + torch.arange(size)).flatten()


class WeightSelection(InheritingMethod):
    """Evenly spaced weights of a larger trained model."""

    name: ClassVar[str] = "weight-selection"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"heads"})

    heads: Literal["mixed", "whole"] = Field(
        "mixed", description="mixed (the paper's): evenly spaced channels of q, k and v; whole: evenly spaced heads"
    )

    def kept(self, tensors: State, source: Spec) -> State:
        """Store everything but the head, which is fresh even at the same width, as in the paper."""
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}

    def inherited(self, tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> State:
        require_order("weight selection", source, spec, grows=False)
        require_same("weight selection", source, spec, "patch")
        require_head_size("weight selection", source, spec)
        stream = evenly_spaced(spec.width, source.width)
        hidden = evenly_spaced(spec.hidden, source.hidden)
        attention = stream if self.heads == "mixed" else evenly_spaced_heads(source, spec)
        qkv = torch.cat([attention + part * source.width for part in range(3)])
        # the selected indices of each dimension
        chosen = {
            "attn.qkv.weight": (qkv, stream),
            "attn.qkv.bias": (qkv,),
            "attn.proj.weight": (stream, attention),
            "mlp.fc1.weight": (hidden, stream),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (stream, hidden),
        }
        state = singletons(tensors, source, spec)
        for name, tensor in state.items():
            state[name] = tensor.index_select(tensor.dim() - 1 if name == "pos_embed" else 0, stream)
        for layer, block in blocks_of(tensors).items():
            if layer < spec.depth:
                for rest, tensor in block.items():
                    for dimension, indices in enumerate(chosen.get(rest, (stream,))):
                        tensor = tensor.index_select(dimension, indices)
                    state[f"blocks.{layer}.{rest}"] = tensor
        return state
