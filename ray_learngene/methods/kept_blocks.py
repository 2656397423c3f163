"""Heur-LG and Auto-LG: a descendant inherits some blocks of a trained model; its other layers are random.

- Heur-LG (Wang et al., AAAI 2022), as run on vision transformers by the same group: the last three blocks, at the end.
- Auto-LG (Wang et al., 2023), likewise: the first six blocks, at the start.

The papers inherit whole layers of convolutional networks. They do not define which other parameters a vision
transformer inherits. Here these are the same as in every other method: patch and position embedding, final norm, and
the head if the classes are the same. A comparison then measures the blocks alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.shared_weights import inherited_blocks, require_same, singletons
from ray_learngene.methods.trained_source import InheritingMethod, State
from ray_learngene.models.layout import block_lists, chains, split
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted


def _checked(keep: str) -> str:
    form = re.fullmatch(r"(first|last)[1-9]\d*|\d+(-\d+)*", keep)
    layers = [] if keep[:1].isalpha() else keep.split("-")
    if not form or layers != sorted(set(layers), key=int):
        raise ValueError(f"expected last3, first6 or layers in ascending order such as 0-5-11, got {keep!r}")
    return keep


Keep = Annotated[str, AfterValidator(_checked)]


class _KeptBlocks(InheritingMethod):
    """Blocks of a trained model at one end of the descendant.

    With `firstN` or `lastN` a source of fewer blocks gives all of them. Blocks in a list must exist in the source.

    A descendant with fewer layers than stored blocks takes the last of them (Heur-LG) or the first (Auto-LG). A deeper
    one has random layers (timm's initialisation) before the blocks (Heur-LG) or after them (Auto-LG).
    """

    place: ClassVar[Literal["start", "end"]]

    keep: Keep

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        self._kept_blocks(spec)
        return super().auxiliary(spec, drop_path=drop_path)

    def kept(self, tensors: State, source: Spec) -> State:
        """Select the blocks, under their names in the source, and all parameters outside blocks."""
        kept, lists = self._kept_blocks(source), block_lists(source)
        state = {}
        for name, tensor in tensors.items():
            block = split(name, lists)
            if block is None or f"{block[0]}.{block[1]}" in kept:
                state[name] = tensor
        return state

    def inherited(self, tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> State:
        require_same(self.name, source, spec, "width", "heads", "patch", "mlp_ratio")
        return singletons(tensors, source, spec) | inherited_blocks(tensors, source, spec, self._place)

    def _place(self, depth: int, of: int) -> list[int | None]:
        """Place stored blocks at one end of a chain's layers; the others are random."""
        random: list[int | None] = [None] * max(0, depth - of)
        if self.place == "end":
            return [*random, *range(max(0, of - depth), of)]
        return [*range(min(depth, of)), *random]

    def _kept_blocks(self, source: Spec) -> set[str]:
        """Return the names of the source's blocks that the learngene stores, of every chain alike."""
        found = chains(source)
        if len(found) > 1 and not self.keep[:1].isalpha():
            raise UserError(
                f"{self.name}:keep={self.keep}: {source.architecture} has {counted(len(found), 'chain')} of blocks: "
                "write firstN or lastN, which takes N of each"
            )
        return {chain[layer] for chain in found.values() for layer in self._layers(len(chain))}

    def _layers(self, depth: int) -> list[int]:
        """Return the indices of a chain's layers that the learngene stores."""
        layers = list(range(depth))
        if self.keep.startswith("first"):
            return layers[: int(self.keep.removeprefix("first"))]
        if self.keep.startswith("last"):
            return layers[-int(self.keep.removeprefix("last")) :]
        chosen = [int(layer) for layer in self.keep.split("-")]
        if chosen[-1] >= depth:
            last = depth - 1
            raise UserError(f"{self.name}:keep={self.keep}: the source model's layers are 0 to {last}")
        return chosen


class HeurLG(_KeptBlocks):
    """The source's last blocks, as the descendant's last layers."""

    name: ClassVar[str] = "heur-lg"
    place: ClassVar[Literal["start", "end"]] = "end"

    keep: Keep = Field("last3", description="blocks of the source to store: last3, first6 or a list such as 0-5-11")


class AutoLG(_KeptBlocks):
    """The source's first blocks, as the descendant's first layers."""

    name: ClassVar[str] = "auto-lg"
    place: ClassVar[Literal["start", "end"]] = "start"

    keep: Keep = Field("first6", description="blocks of the source to store: last3, first6 or a list such as 0-5-11")
