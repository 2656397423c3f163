"""Share-Init: one block for all layers (ALBERT: Lan et al., ICLR 2020, arXiv 1909.11942), a baseline of WAVE.

The auxiliary model applies a single block in every layer: θ_l = θ. A descendant of any depth copies the block into each
layer and is trained untied. Share-Init is SWS with one stage, TLEG without a slope, WAVE with one whole template.
"""

from __future__ import annotations

from typing import ClassVar

from ray_learngene.methods.generated import GeneratingMethod, Genes, State
from ray_learngene.methods.shared_weights import inherited_blocks, require_same, singletons
from ray_learngene.models.build import build
from ray_learngene.models.layout import reduced
from ray_learngene.models.specs import Spec


class ShareInit(GeneratingMethod):
    """One shared block."""

    name: ClassVar[str] = "share-init"

    def initial(self, spec: Spec) -> State:
        """Initialise the parameters of a model with one block in every chain."""
        return dict(build(reduced(spec, 1)).state_dict())

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        require_same("Share-Init", source, spec, "width", "heads", "patch", "mlp_ratio")
        return singletons(genes, source, spec) | inherited_blocks(
            genes, reduced(source, 1), spec, lambda depth, of: [0] * depth
        )
