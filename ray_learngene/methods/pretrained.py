"""Pre-train every size: train a model for the full schedule at each size; a descendant is that model itself.

This is the "direct" row of the papers' tables and the upper bound for a learngene. It costs one pre-training per size.
With `truncate` every smaller depth takes the first layers of one pre-trained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ray_learngene.errors import UserError
from ray_learngene.methods.shared_weights import inherited_blocks, is_head, require_same, singletons
from ray_learngene.methods.trained_source import InheritingMethod, State
from ray_learngene.models.specs import Spec


class Pretrained(InheritingMethod):
    """A trained model, or its first layers."""

    name: ClassVar[str] = "pretrained"
    source = "each"
    fixed: ClassVar[bool] = True
    expansion_options: ClassVar[frozenset[str]] = frozenset({"truncate"})

    truncate: bool = Field(False, description="a smaller depth takes the first layers; off: the trained depth only")

    def inherited(self, tensors: Mapping[str, Tensor], source: Spec, spec: Spec) -> State:
        """Return every parameter of the spec's layers; the image size and the label set may differ."""
        if spec == source.replace(image=spec.image, classes=spec.classes):  # its blocks need not be known
            same = spec.classes == source.classes
            return {name: each for name, each in tensors.items() if same or not is_head(name, source)}
        require_same("pretrained", source, spec, "width", "heads", "patch", "mlp_ratio")
        if spec.depth > source.depth or (spec.depth < source.depth and not self.truncate):
            offer = "" if spec.depth > source.depth else " (pretrained:truncate=true takes its first layers)"
            raise UserError(
                f"pretrained gives the trained size only: the learngene has depth {source.depth}, "
                f"the spec asks for {spec.depth}{offer}"
            )
        return singletons(tensors, source, spec) | inherited_blocks(
            tensors, source, spec, lambda depth, of: range(min(depth, of))
        )
