"""WAVE: weight templates (CVPR 2025, arXiv 2406.17503), for any depth and width, and their closed form.

Every matrix of every layer is Σ_t S(l, t) ⊗ T(t). The templates T, shared by all layers and sizes, are the learngene.
The scalers S are about a thousand numbers. A descendant starts with scalers interpolated in relative depth. It fits
them for a few hundred steps with frozen templates. Then it is a plain model, trained like any other.

There are two modes. In depth mode templates are as wide as the model, and only matrices have templates. Biases and
norms are stored per layer and interpolated like the scalers; embeddings, final norm and head are stored once. In width
mode (`template=SIDE`) the side divides every width. The number of heads grows with the width, at the same head size.
Biases, norms and embeddings have their own templates. The sources do not define these smaller parameters; their
treatment here is ours. `plain_templates.py` holds the templates of the plain vision transformer, and
`labelled_templates.py` those of other families.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from ray_learngene.methods.base import Learngene, Numbers
from ray_learngene.methods.generated import (
    FittedVisionTransformer,
    GeneratedVisionTransformer,
    GeneratingMethod,
    Genes,
    State,
    require_no_statistics,
)
from ray_learngene.methods.kronecker import MATRICES
from ray_learngene.methods.labelled_templates import LabelledTemplates
from ray_learngene.methods.plain_templates import PlainTemplates
from ray_learngene.methods.shared_weights import fresh_head, is_head, require_head_size, require_same
from ray_learngene.models.build import build_with, spec_of, under_entry_point_of
from ray_learngene.models.specs import Spec


def _one_or_four(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(value) not in (1, len(MATRICES)):
        raise ValueError(f"expected one number, or four for {', '.join(MATRICES)}, got {len(value)}")
    return value


OneOrFour = Annotated[Numbers, AfterValidator(_one_or_four)]


class Wave(GeneratingMethod):
    """Weight templates with scalers."""

    name: ClassVar[str] = "wave"
    expansion_options: ClassVar[frozenset[str]] = frozenset({"scalers", "head", "fit", "fit_lr"})

    counts: OneOrFour = Field((6, 2, 8, 8), description="templates of qkv, proj, fc1 and fc2, or one number for all")
    template: OneOrFour | None = Field(
        None, description="side of the templates, one or four numbers; must divide every width; default: the width"
    )
    vectors: int = Field(8, ge=1, description="templates of each bias and norm (width mode)")
    embeddings: int | None = Field(
        None, ge=1, description="templates of each embedding (width mode); default: enough to represent it exactly"
    )
    scalers: Literal["linear", "nearest", "identical", "random"] = Field(
        "linear", description="initial scalers: interpolated in depth, the nearest layer's, the mean of all, or random"
    )
    head: Literal["fresh", "tiled"] = Field("fresh", description="head at another width: random, or tiled as the rest")
    fit: int = Field(200, ge=0, description="steps that fit the scalers before the model becomes plain; 0: none")
    fit_lr: float = Field(5e-3, gt=0, description="peak learning rate of these steps")

    def _templates(self, spec: Spec) -> PlainTemplates | LabelledTemplates:
        """Return the templates of the architecture of a spec."""

        def numbers(option: tuple[int, ...]) -> dict[str, int]:
            return {matrix: option[index % len(option)] for index, matrix in enumerate(MATRICES)}

        kind = PlainTemplates if spec.architecture is None else LabelledTemplates
        sides = numbers(self.template) if self.template else None
        return kind(numbers(self.counts), sides, self.vectors, self.embeddings)

    # Phase 1 and the closed form.

    def initial(self, spec: Spec) -> State:
        return self._templates(spec).initial(spec)

    def extract(self, auxiliary: nn.Module) -> Learngene:
        """Extract the genes of a distilled auxiliary model; for any other trained model compute the closed form.

        The closed form is a truncated singular value decomposition. For every kind of matrix it gives the templates and
        scalers that come closest to all layers together. It is exact with as many templates as independent blocks. The
        genes have the auxiliary's names and shapes, so that a distillation can start from them.

        Raises:
            UserError: the model is not one of a spec, or the templates do not fit it.
        """
        if isinstance(auxiliary, GeneratedVisionTransformer):
            return super().extract(auxiliary)
        spec = spec_of(auxiliary)
        state = {name: tensor.detach().cpu() for name, tensor in auxiliary.state_dict().items()}
        if spec.architecture is not None:
            require_no_statistics(self.name, spec)
        genes = self._templates(spec).closed_form(state, spec)
        return Learngene(self.name, self.options(), spec, genes)

    # Phase 2.

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        spec = under_entry_point_of(source, spec)
        genes = genes if spec == source else self._resized(genes, source, spec, "linear")
        return self._assembled(source)(genes, spec)

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        """Build the target without fitting its scalers."""
        made = self.as_made(learngene)
        assert learngene is not None
        spec = under_entry_point_of(learngene.spec, spec)
        genes = self._target(learngene, spec, seed)
        return build_with(spec, made._assembled(learngene.spec)(genes, spec), seed=seed)

    def _assembled(self, source: Spec) -> Callable[[Genes, Spec], State]:
        """Return the function from genes of a spec, made from a learngene of `source`, to the spec's state dict."""
        return partial(self._templates(source).assemble, image=source.image)

    @property
    def fitting_steps(self) -> int:
        return self.fit

    def adapter(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> FittedVisionTransformer | None:
        made = self.as_made(learngene)
        assert learngene is not None
        spec = under_entry_point_of(learngene.spec, spec)
        genes = self._target(learngene, spec, seed)
        if not self.fit:
            return None
        # embeddings, like templates, are the same for all sizes; they are also too large to fit in a few hundred steps
        names = made._templates(spec).frozen(genes, spec)
        frozen = {name: gene for name, gene in genes.items() if name in names}
        trained = {name: gene for name, gene in genes.items() if name not in names}
        return FittedVisionTransformer(spec, trained, made._assembled(learngene.spec), frozen, self.fit, self.fit_lr)

    @torch.no_grad()
    def _target(self, learngene: Learngene | None, spec: Spec, seed: int) -> State:
        """Return the genes of the target, resized by the rule of the option `scalers`, with a head."""
        made = self.as_made(learngene)
        assert learngene is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            genes = made._resized(learngene.tensors, learngene.spec, spec, self.scalers)
        if spec.classes and not any(is_head(name, spec) for name in genes):
            genes |= fresh_head(spec, seed)
        return genes

    def _require(self, source: Spec, spec: Spec) -> None:
        """Raise `UserError` if the templates cannot expand to the spec."""
        if self.template is None:
            require_same("wave in depth mode (made without template=SIDE)", source, spec, "width", "heads")
        require_same("wave", source, spec, "patch", "mlp_ratio")
        require_head_size("wave", source, spec)
        self._templates(spec).require(spec)

    def _resized(self, genes: Genes, source: Spec, spec: Spec, rule: str) -> State:
        """Resize genes to another depth and width; templates do not change.

        Channel c of the new width is channel c modulo the learngene's width, per head and separately for query, key and
        value. Input weights are divided by their repetitions. At a multiple of the width the model therefore computes
        the function of the learngene's model.
        """
        self._require(source, spec)
        return self._templates(spec).resized(genes, source, spec, rule, self.head == "tiled")
