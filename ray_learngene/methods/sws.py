"""SWS: stage-wise weight sharing (Xia et al., IJCAI 2024, arXiv 2404.16897).

The auxiliary model is a vision transformer divided into stages. All layers of a stage apply the same block. The
learngene is one block per stage, plus patch embedding, position embedding, final norm and head. A descendant of any
depth initialises each layer from the block of the layer's stage and is then trained untied.
"""

from __future__ import annotations

import math
import random
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from timm.layers import calculate_drop_path_rates, drop_path
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method, Numbers
from ray_learngene.methods.generated import (
    GeneratedVisionTransformer,
    Generator,
    Genes,
    State,
    initialised,
    require_no_statistics,
)
from ray_learngene.methods.shared_weights import inherited_blocks, require_same, singletons
from ray_learngene.models.build import build, timm_arguments
from ray_learngene.models.compile import CompiledBlock
from ray_learngene.models.layout import chains, reduced
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted

Rule = Literal["cyclic", "random", "interleaved", "proportional", "unbalanced"]


def layers_per_stage(depth: int, layout: tuple[int, ...], rule: Rule = "cyclic", seed: int = 0) -> tuple[int, ...]:
    """Assign a descendant's layers to stages: the number of layers of each stage.

    - `cyclic` (the paper's rule): round-robin; the remainder goes to the earliest stages. 12 layers over 5 stages are
      [3,3,2,2,2], the mapping that the authors published.
    - `random`: the same, but `seed` chooses the stages that get the remainder (the random-assigned ablation).
    - `proportional`: in proportion to the auxiliary's layout. Each stage gets one layer; each further layer goes to the
      stage furthest below its share. At the auxiliary's depth this is the auxiliary's layout, even an unbalanced one.
    - `unbalanced`: one layer per stage, all others to the middle stage.

    The paper does not define depths below the number of stages. Here they take evenly spaced stages, in order: the
    midpoints of `depth` equal spans.

    Args:
        depth: Layers of the descendant, from 1 up.
        layout: Layers per stage of the auxiliary model.
    """
    stages = len(layout)
    if depth < stages:
        chosen = {(2 * layer + 1) * stages // (2 * depth) for layer in range(depth)}
        return tuple(int(stage in chosen) for stage in range(stages))
    if rule == "proportional":
        shares = [depth * layers / sum(layout) for layers in layout]
        counts = [1] * stages
        for _ in range(depth - stages):
            counts[max(range(stages), key=lambda stage: shares[stage] - counts[stage])] += 1
        return tuple(counts)
    if rule == "unbalanced":
        return tuple(1 + (depth - stages) * (stage == stages // 2) for stage in range(stages))
    each, remainder = divmod(depth, stages)
    order = list(range(stages))
    if rule == "random":
        random.Random(seed).shuffle(order)
    return tuple(each + (stage in order[:remainder]) for stage in range(stages))


def stage_of_layer(depth: int, layout: tuple[int, ...], rule: Rule = "cyclic", seed: int = 0) -> tuple[int, ...]:
    """Return the stage of each layer of a descendant, in order.

    The layers of a stage are contiguous, except for `interleaved` (the literal cyclic order: A B C D E A B C D E ...).
    """
    if rule == "interleaved":
        return tuple(layer % len(layout) for layer in range(depth))
    counts = layers_per_stage(depth, layout, rule, seed)
    return tuple(stage for stage, count in enumerate(counts) for _ in range(count))


def balanced_layout(depth: int, stages: int) -> tuple[int, ...]:
    """Divide layers equally among stages; the remainder goes to the middle stages (16 over 5: [3,3,4,3,3])."""
    each, remainder = divmod(depth, stages)
    middle_first = sorted(range(stages), key=lambda stage: abs(2 * stage - (stages - 1)))
    return tuple(each + (stage in middle_first[:remainder]) for stage in range(stages))


class StageSharedVisionTransformer(VisionTransformer):
    """A vision transformer whose stages apply one block repeatedly.

    Each shared block is registered once (`blocks.0` .. `blocks.S-1`) and applied by the index list `stage_of_layer`.
    State dict and optimizer hold it once, so every ZeRO stage works. Stochastic depth rises linearly over the
    applications. Nothing else differs between two applications of a block.
    """

    group_matcher: ClassVar[None] = None  # timm's would tell stages apart, not layers

    def __init__(self, spec: Spec, layout: tuple[int, ...], drop_path_rate: float = 0.0) -> None:
        super().__init__(**{**timm_arguments(spec), "depth": len(layout)}, num_classes=spec.classes)
        self.spec = spec.replace(depth=sum(layout))
        self.layout = layout
        self.stage_of_layer = tuple(stage for stage, layers in enumerate(layout) for _ in range(layers))
        self.feature_info = [self.feature_info[stage] for stage in self.stage_of_layer]
        self.drop_path_rates: list[float] = calculate_drop_path_rates(drop_path_rate, self.spec.depth)  # type: ignore[assignment]

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map images `[B, *spec.image]` to tokens `[B, tokens, width]`; masks are not supported."""
        x = self._pos_embed(self.patch_embed(x))
        for stage, rate in zip(self.stage_of_layer, self.drop_path_rates, strict=True):
            x = self._applied(stage, x, rate)
        return x

    def forward_intermediates(  # type: ignore[override]
        self, x: Tensor, indices: list[int], norm: bool = False, output_fmt: str = "NCHW"
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the last tokens and the maps `[B, width, H, W]` after some layers, counted as applied."""
        x, maps = self._pos_embed(self.patch_embed(x)), []
        for layer, (stage, rate) in enumerate(zip(self.stage_of_layer, self.drop_path_rates, strict=True)):
            x = self._applied(stage, x, rate)
            if layer in indices:
                maps.append(x.transpose(1, 2).unflatten(2, self.patch_embed.grid_size))
        return x, maps

    def _applied(self, stage: int, x: Tensor, rate: float) -> Tensor:
        block = self.blocks[stage]
        if self.grad_checkpointing and self.training:
            return checkpoint(self._apply_block, block, x, rate, use_reentrant=False)
        return self._apply_block(block, x, rate)

    def _apply_block(self, block: Any, x: Tensor, rate: float) -> Tensor:
        # timm's Block.forward, with the drop-path rate of this application: timm's block has one fixed rate
        if isinstance(block, CompiledBlock):
            return block.at_rate(x, rate)
        x = x + drop_path(block.attn(block.norm1(x)), rate, self.training)
        return x + drop_path(block.mlp(block.norm2(x)), rate, self.training)


def _stored(source: Spec, layout: tuple[int, ...] | None) -> Spec:
    """Return the spec whose model has the shared blocks as its layers."""
    if layout is not None:
        return source.replace(depth=len(layout))
    return reduced(source, lambda layers: min(5, math.ceil(layers / 3)))


class SWS(Method):
    """Stage-wise weight sharing."""

    name: ClassVar[str] = "sws"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"expansion", "layout"})

    stages: Numbers | None = Field(None, description="layers per stage of the auxiliary; default: five balanced stages")
    expansion: Rule = Field("cyclic", description="rule that assigns a descendant's layers to the stages")
    layout: Numbers | None = Field(None, description="a descendant's layers per stage, instead of a rule")

    @model_validator(mode="after")
    def _not_empty(self) -> SWS:
        for name in ("stages", "layout"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} is empty: give at least one stage")
        return self

    def auxiliary(self, spec: Spec, *, drop_path: float = 0.0) -> nn.Module:
        """Build the auxiliary; of an architecture with several chains, each has a block for every three layers."""
        if spec.architecture is None:
            layout = self.stages or balanced_layout(spec.depth, min(5, spec.depth))
            return StageSharedVisionTransformer(spec, layout, drop_path)
        require_no_statistics(self.name, spec)
        made = self
        if len(chains(spec)) == 1:
            layout = self.stages or balanced_layout(spec.depth, min(5, spec.depth))
            made, spec = SWS(stages=layout, expansion="proportional"), spec.replace(depth=sum(layout))
        elif self.stages is not None:
            raise UserError(
                f"sws:stages gives the stages of one chain of blocks, {spec.architecture} has {len(chains(spec))}: "
                "leave it out, and every chain gets a block for each three layers"
            )
        genes = dict(build(_stored(spec, made.stages)).state_dict())
        return GeneratedVisionTransformer(spec, genes, Generator(made, spec), drop_path=drop_path)

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        """Generate the state dict of the timm model of `spec` from shared blocks."""
        return self._state(genes, source, spec, 0)

    def _state(self, genes: Genes, source: Spec, spec: Spec, seed: int) -> State:
        return singletons(genes, source, spec) | inherited_blocks(
            genes,
            _stored(source, self.stages),
            spec,
            lambda depth, of: self._stages(self.stages or (1,) * of, depth, seed),
        )

    def extract(self, auxiliary: nn.Module) -> Learngene:
        if isinstance(auxiliary, StageSharedVisionTransformer):
            stages: list[int] | None = list(auxiliary.layout)
            tensors: State = auxiliary.state_dict()
        elif isinstance(auxiliary, GeneratedVisionTransformer) and isinstance(auxiliary.generate, Generator):
            layout = getattr(auxiliary.generate.method, "stages", None)
            stages, tensors = layout and list(layout), auxiliary.genes()
        else:
            raise UserError(f"method {self.name!r} needs its own auxiliary model: use `learngene distill`")
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        return Learngene(self.name, {"stages": stages}, auxiliary.spec, tensors)

    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        """Copy each stage's block into the layers that the expansion rule assigns to it; inherit all other parameters.

        The position embedding is resampled if the image size differs. The head is inherited if the number of classes is
        the same, else fresh.
        """
        made = self.as_made(learngene)  # raises if `stages` differs from the learngene's
        assert learngene is not None
        source = learngene.spec
        require_same("SWS", source, spec, "width", "heads", "patch", "mlp_ratio")
        if made.layout is not None and made.stages is None:
            raise UserError(f"sws:layout gives the stages of one chain of blocks; {spec.architecture} has several")
        return initialised(spec, seed, made._state(learngene.tensors, source, spec, seed), source.image)

    def _stages(self, auxiliary_layout: tuple[int, ...], depth: int, seed: int) -> tuple[int, ...]:
        if self.layout is None:
            return stage_of_layer(depth, auxiliary_layout, self.expansion, seed)
        if len(self.layout) != len(auxiliary_layout) or sum(self.layout) != depth:
            text = "-".join(map(str, self.layout))
            raise UserError(
                f"layout {text} has {counted(sum(self.layout), 'layer')} in "
                f"{counted(len(self.layout), 'stage')}; "
                f"the spec asks for depth {depth}, the learngene has {counted(len(auxiliary_layout), 'stage')}"
            )
        return tuple(stage for stage, layers in enumerate(self.layout) for _ in range(layers))
