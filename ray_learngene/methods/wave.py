"""WAVE: weight templates (CVPR 2025, arXiv 2406.17503), for any depth and width, and their closed form.

Every matrix of every layer is Σ_t S(l, t) ⊗ T(t). The templates T, shared by all layers and sizes, are the learngene.
The scalers S are about a thousand numbers. A descendant starts with scalers interpolated in relative depth. It fits
them for a few hundred steps with frozen templates. Then it is a plain model, trained like any other.

There are two modes. In depth mode templates are as wide as the model, and only matrices have templates. Biases and
norms are stored per layer and interpolated like the scalers; embeddings, final norm and head are stored once. In width
mode (`template=SIDE`) the side divides every width. The number of heads grows with the width, at the same head size.
Biases, norms and embeddings have their own templates. The sources do not define these smaller parameters; their
treatment here is ours. Models of other families are in `labelled_templates.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Numbers
from ray_learngene.methods.generated import (
    GeneratedVisionTransformer,
    GeneratingMethod,
    Genes,
    State,
    prototype,
    require_no_statistics,
)
from ray_learngene.methods.kronecker import (
    DEVIATION,
    best_templates,
    fitted_scalers,
    interpolate_layers,
    kron_sum,
    random_scalers,
    tile,
)
from ray_learngene.methods.labelled_templates import MATRICES, LabelledTemplates
from ray_learngene.methods.shared_weights import is_head, require_head_size, require_same
from ray_learngene.models.specs import Spec, build, build_with, spec_of


@dataclass(frozen=True)
class Part:
    """A parameter that templates can generate, as a matrix whose rows are outputs and whose columns are inputs.

    Attributes:
        parameter: Its name in a block if it is layered, else in the timm model.
        matrix: The entry of MATRICES whose template side it uses.
        layered: Whether every layer has one.
        groups: Groups of rows that are resized separately (query, key and value).
    """

    parameter: str
    matrix: str
    layered: bool = True
    groups: int = 1


# Keys are the names in the genes: `templates.<name>`, `scalers.<name>` and, in depth mode, `layers.<name>`.
PARTS = {
    "qkv": Part("attn.qkv.weight", "qkv", groups=3),
    "proj": Part("attn.proj.weight", "proj"),
    "fc1": Part("mlp.fc1.weight", "fc1"),
    "fc2": Part("mlp.fc2.weight", "fc2"),
    "norm1_weight": Part("norm1.weight", "proj"),
    "norm1_bias": Part("norm1.bias", "proj"),
    "qkv_bias": Part("attn.qkv.bias", "qkv", groups=3),
    "proj_bias": Part("attn.proj.bias", "proj"),
    "norm2_weight": Part("norm2.weight", "proj"),
    "norm2_bias": Part("norm2.bias", "proj"),
    "fc1_bias": Part("mlp.fc1.bias", "fc1"),
    "fc2_bias": Part("mlp.fc2.bias", "fc2"),
    "patch_embed": Part("patch_embed.proj.weight", "proj", layered=False),
    "patch_bias": Part("patch_embed.proj.bias", "proj", layered=False),
    "pos_embed": Part("pos_embed", "proj", layered=False),
    "fc_norm_weight": Part("fc_norm.weight", "proj", layered=False),
    "fc_norm_bias": Part("fc_norm.bias", "proj", layered=False),
}
_EMBEDDINGS = ("patch_embed", "pos_embed")
_FROZEN = ("patch_embed.proj.weight", "pos_embed")
_VECTORS = tuple(name for name in PARTS if name not in (*MATRICES, *_EMBEDDINGS))
_GAINS = ("norm1_weight", "norm2_weight", "fc_norm_weight")
_PREFIXES = ("templates", "scalers", "layers")


def _deviation(name: str) -> float:
    """Return the standard deviation of a part's templates.

    It is 0.1 for biases and norms: at 1, a step of all scalers together would move a gain too far.
    """
    return 0.1 if name in _VECTORS else DEVIATION


def _stacked(state: Mapping[str, Tensor], part: Part, depth: int) -> Tensor:
    """Stack a parameter over all layers into matrices `[layers, rows, columns]`; 1 layer if it is not layered."""
    names = [f"blocks.{layer}.{part.parameter}" for layer in range(depth)] if part.layered else [part.parameter]
    tensors = [state[name].detach() for name in names]
    if part.parameter == "pos_embed":  # [1, tokens, width]: the width is its output
        tensors = [tensor[0].T for tensor in tensors]
    return torch.stack([tensor.reshape(len(tensor), -1) for tensor in tensors])


def _unstacked(matrices: Tensor, name: str, spec: Spec) -> State:
    """Invert `_stacked`: turn the matrices of the part `name` back into parameters."""
    part = PARTS[name]
    if name == "pos_embed":
        return {part.parameter: matrices.transpose(1, 2)}
    if name == "patch_embed":
        return {part.parameter: matrices.reshape(-1, 3, spec.patch, spec.patch)}
    tensors = (matrices if name in MATRICES else matrices[..., 0]).unbind()
    if part.layered:
        return {f"blocks.{layer}.{part.parameter}": tensor for layer, tensor in enumerate(tensors)}
    return {part.parameter: tensors[0]}


def assemble(genes: Genes, spec: Spec) -> State:
    """Generate the state dict of the timm model of `spec` from genes of that spec, differentiably.

    The position embedding is resampled if the image size differs. The state has no head if the genes have none.
    """
    state: State = {name: gene for name, gene in genes.items() if name.split(".")[0] not in _PREFIXES}
    for name, part in PARTS.items():
        if f"templates.{name}" in genes:
            matrices = kron_sum(genes[f"scalers.{name}"], genes[f"templates.{name}"])
            state |= _unstacked(matrices, name, spec)
        elif part.layered:
            state |= _unstacked(genes[f"layers.{name}"][..., None], name, spec)
    side = spec.image // spec.patch
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [side, side], num_prefix_tokens=0)
    return state


class ScalerAdapter(GeneratedVisionTransformer):
    """A target model that fits scalers, biases, norms and head; templates and embeddings are frozen."""

    fit_steps = 0
    fit_lr = 0.0


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

    # Shapes.

    def _number(self, numbers: tuple[int, ...], matrix: str) -> int:
        return numbers[MATRICES.index(matrix) % len(numbers)]

    def _templated(self) -> dict[str, Part]:
        """Return the parts with templates: the four matrices; in width mode everything but the head."""
        return {name: part for name, part in PARTS.items() if self.template or name in MATRICES}

    def _template_shape(self, name: str, rows: int, columns: int, spec: Spec) -> tuple[int, int, int]:
        """Return the number, height and width of a parameter's templates.

        Raises:
            UserError: the templates do not divide the parameter, or they cut through heads.
        """
        matrix = PARTS[name].matrix
        side = self._number(self.template, matrix) if self.template else spec.width
        head_size = spec.width // spec.heads
        for size in (rows, columns) if name in MATRICES else (rows,):
            if size % side:
                raise UserError(f"wave: templates of side {side} do not divide the {rows}×{columns} {matrix} matrices")
        if matrix in ("qkv", "proj") and side % head_size and head_size % side:
            raise UserError(f"wave: templates of side {side} cut through heads of size {head_size}: take a multiple")
        if name in MATRICES:
            return self._number(self.counts, name), side, side
        count = (self.embeddings or rows // side) if name in _EMBEDDINGS else self.vectors
        return count, side, columns

    def _shapes(self, spec: Spec) -> dict[str, tuple[int, int, int]]:
        """Return layers, rows and columns of every part."""
        state = prototype(spec).state_dict()
        return {name: tuple(_stacked(state, part, spec.depth).shape) for name, part in PARTS.items()}  # type: ignore[misc]

    # Phase 1 and the closed form.

    def initial(self, spec: Spec) -> State:
        """Initialise templates N(0, 0.02²), scalers of variance 1 / templates, biases 0, gains 1; the rest as in timm.

        In width mode embeddings are initialised like the matrices. The first template of a bias or gain is 1, and its
        first scaler is the value of that bias or gain. The other templates are N(0, 0.1²), their scalers 0.
        """
        if spec.architecture is not None:
            return self._labelled().initial(spec)
        model = build(spec)
        genes: State = {}
        templated = self._templated()
        for name, (layers, rows, columns) in self._shapes(spec).items():
            if name not in templated:
                if PARTS[name].layered:
                    genes[f"layers.{name}"] = _stacked(model.state_dict(), PARTS[name], spec.depth)[..., 0]
                continue
            count, height, width = self._template_shape(name, rows, columns, spec)
            genes[f"templates.{name}"] = torch.randn(count, height, width) * _deviation(name)
            if name in _VECTORS:
                genes[f"templates.{name}"][0] = 1
                genes[f"scalers.{name}"] = torch.zeros(layers, count, rows // height, 1)
                genes[f"scalers.{name}"][:, 0] = float(name in _GAINS)
            else:
                genes[f"scalers.{name}"] = random_scalers(layers, count, rows // height, columns // width)
        return genes | self._untemplated(model.state_dict())

    def _untemplated(self, state: Mapping[str, Tensor]) -> State:
        """Copy the parameters outside blocks that have no templates."""
        made = {part.parameter for part in self._templated().values()}
        return {
            name: tensor.detach().clone()
            for name, tensor in state.items()
            if not name.startswith("blocks.") and name not in made
        }

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
            genes = self._labelled().closed_form(state, spec)
            return Learngene(self.name, self.model_dump(mode="json"), spec, genes)
        templates: State = {}
        for name, part in self._templated().items():
            matrices = _stacked(state, part, spec.depth)
            _, rows, columns = matrices.shape
            shape = self._template_shape(name, rows, columns, spec)
            templates[f"templates.{name}"] = best_templates(matrices, *shape, _deviation(name))
        return Learngene(self.name, self.model_dump(mode="json"), spec, self._closest(state, spec, templates))

    def closest(self, learngene: Learngene, model: nn.Module) -> Learngene:
        """Express a trained model of any size by a learngene's templates: fit its scalers by least squares.

        The result has the model's spec and the learngene's templates. Use it for trained models only. Least squares are
        linear: for interpolated matrices they would return the interpolated scalers.

        Raises:
            UserError: the model is not one of a spec, or the templates do not fit it.
        """
        made, spec = self.as_made(learngene), spec_of(model)
        made._require(learngene.spec, spec)
        state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        templates = {name: gene for name, gene in learngene.tensors.items() if name.startswith("templates.")}
        return Learngene(self.name, learngene.options, spec, made._closest(state, spec, templates))

    def _closest(self, state: Mapping[str, Tensor], spec: Spec, templates: Genes) -> State:
        if spec.architecture is not None:
            return self._labelled().closest(state, spec, templates)
        genes = dict(templates) | self._untemplated(state)
        for name, part in PARTS.items():
            if f"templates.{name}" in genes:
                matrices = _stacked(state, part, spec.depth)
                genes[f"scalers.{name}"] = fitted_scalers(matrices, genes[f"templates.{name}"])
            elif part.layered:
                genes[f"layers.{name}"] = _stacked(state, part, spec.depth)[..., 0]
        return genes

    # Phase 2.

    def generate(self, genes: Genes, source: Spec, spec: Spec) -> State:
        genes = genes if spec == source else self._resized(genes, source, spec, "linear")
        return self._assembled(source)(genes, spec)

    @torch.no_grad()
    def expand(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> nn.Module:
        """Build the target without fitting its scalers."""
        genes = self._target(learngene, spec, seed)
        assert learngene is not None
        return build_with(spec, self.as_made(learngene)._assembled(learngene.spec)(genes, spec), seed=seed)

    def _labelled(self) -> LabelledTemplates:
        """Return the templates of a model that is not the plain vision transformer."""
        sides = {matrix: self._number(self.template, matrix) for matrix in MATRICES} if self.template else None
        counts = {matrix: self._number(self.counts, matrix) for matrix in MATRICES}
        return LabelledTemplates(counts, sides, self.vectors, self.embeddings)

    def _assembled(self, source: Spec) -> Callable[[Genes, Spec], State]:
        """Return the function from genes of a spec, made from a learngene of `source`, to the spec's state dict."""
        return assemble if source.architecture is None else partial(self._labelled().assemble, image=source.image)

    @property
    def fitting_steps(self) -> int:
        return self.fit

    def adapter(self, learngene: Learngene | None, spec: Spec, *, seed: int = 0) -> ScalerAdapter | None:
        genes = self._target(learngene, spec, seed)
        if not self.fit:
            return None
        made = self.as_made(learngene)
        assert learngene is not None
        # embeddings, like templates, are the same for all sizes; they are also too large to fit in a few hundred steps
        names = {name for name in genes if name.startswith("templates.") or name in _FROZEN}
        if spec.architecture is not None:
            names = made._labelled().frozen(genes, spec)
        frozen = {name: gene for name, gene in genes.items() if name in names}
        trained = {name: gene for name, gene in genes.items() if name not in names}
        adapter = ScalerAdapter(spec, trained, made._assembled(learngene.spec), frozen=frozen)
        adapter.fit_steps, adapter.fit_lr = self.fit, self.fit_lr
        return adapter

    @torch.no_grad()
    def _target(self, learngene: Learngene | None, spec: Spec, seed: int) -> State:
        """Return the genes of the target, resized by the rule of the option `scalers`, with a head."""
        made = self.as_made(learngene)
        assert learngene is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            genes = made._resized(learngene.tensors, learngene.spec, spec, self.scalers)
        if spec.classes and not any(is_head(name, spec) for name in genes):
            fresh = build(spec, seed=seed).state_dict()
            genes |= {name: tensor for name, tensor in fresh.items() if is_head(name, spec)}
        return genes

    def _require(self, source: Spec, spec: Spec) -> None:
        """Raise `UserError` if the templates cannot expand to the spec."""
        if self.template is None:
            require_same("wave in depth mode (made without template=SIDE)", source, spec, "width", "heads")
        require_same("wave", source, spec, "patch", "mlp_ratio")
        require_head_size("wave", source, spec)
        if spec.architecture is not None:
            labelled = self._labelled()
            for part in labelled.templated(spec).values():
                labelled.shape(spec, part, *part.sizes(spec))
            return
        for name, (_, rows, columns) in self._shapes(spec).items():
            if name in self._templated():
                self._template_shape(name, rows, columns, spec)

    def _resized(self, genes: Genes, source: Spec, spec: Spec, rule: str) -> State:
        """Resize genes to another depth and width; templates do not change.

        Channel c of the new width is channel c modulo the learngene's width, per head and separately for query, key and
        value. Input weights are divided by their repetitions. At a multiple of the width the model therefore computes
        the function of the learngene's model.
        """
        self._require(source, spec)
        if spec.architecture is not None:
            return self._labelled().resized(genes, source, spec, rule, self.head == "tiled")
        target: State = {}
        shapes = self._shapes(spec)
        for gene, tensor in genes.items():
            prefix, _, name = gene.partition(".")
            if prefix == "scalers":
                target[gene] = self._resized_scalers(name, tensor, genes[f"templates.{name}"], shapes[name], rule)
            elif prefix == "layers":
                target[gene] = interpolate_layers(tensor, spec.depth, nearest=rule == "nearest")
            elif prefix != "head":
                target[gene] = tensor
            elif spec.classes == source.classes and (spec.width == source.width or self.head == "tiled"):
                target[gene] = tile(tensor, 1, spec.width, inputs=True) if tensor.ndim == 2 else tensor
        return target

    def _resized_scalers(
        self, name: str, scalers: Tensor, templates: Tensor, shape: tuple[int, int, int], rule: str
    ) -> Tensor:
        layers, rows, columns = shape
        count, height, width = templates.shape
        grid = (rows // height, 1 if name in _EMBEDDINGS else columns // width)
        if name in MATRICES and rule == "random":
            return random_scalers(layers, count, *grid)
        if name in MATRICES and rule == "identical":
            scalers = scalers.mean(0, keepdim=True).expand(layers, -1, -1, -1)
        elif PARTS[name].layered:
            scalers = interpolate_layers(scalers, layers, nearest=rule == "nearest")
        groups = scalers.unflatten(2, (PARTS[name].groups, -1))
        scalers = tile(groups, 3, grid[0] // PARTS[name].groups).flatten(2, 3)
        return tile(scalers, 3, grid[1], inputs=True)
