"""Weight templates of the plain vision transformer: which parameters have them, and how they are resized.

In depth mode templates are as wide as the model, and only matrices have templates. In width mode every parameter but
the head has. The genes are `templates.<part>`, `scalers.<part>` and, in depth mode, `layers.<part>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError
from ray_learngene.methods.generated import Genes, State, prototype
from ray_learngene.methods.kronecker import (
    DEVIATION,
    MATRICES,
    best_templates,
    fitted_scalers,
    interpolate_layers,
    kron_sum,
    random_scalers,
    tile,
)
from ray_learngene.models.build import build
from ray_learngene.models.specs import Spec


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
_VECTORS = tuple(name for name in PARTS if name not in (*MATRICES, *_EMBEDDINGS))
_GAINS = ("norm1_weight", "norm2_weight", "fc_norm_weight")
_PREFIXES = ("templates", "scalers", "layers")


@dataclass(frozen=True)
class PlainTemplates:
    """Templates of the plain vision transformer, with the options of `wave`; as `LabelledTemplates`.

    Attributes:
        counts: Templates of qkv, proj, fc1 and fc2.
        sides: Sides of these templates in width mode; None: depth mode.
        vectors: Templates of each bias and norm.
        embeddings: Templates of each embedding; None: enough to represent it exactly.
    """

    counts: Mapping[str, int]
    sides: Mapping[str, int] | None
    vectors: int
    embeddings: int | None

    def _templated(self) -> dict[str, Part]:
        return {name: part for name, part in PARTS.items() if self.sides or name in MATRICES}

    def _shape(self, name: str, rows: int, columns: int, spec: Spec) -> tuple[int, int, int]:
        """Return the number, height and width of a part's templates.

        Raises:
            UserError: the templates do not divide the part, or they cut through heads.
        """
        matrix = PARTS[name].matrix
        side = self.sides[matrix] if self.sides else spec.width
        head_size = spec.width // spec.heads
        for size in (rows, columns) if name in MATRICES else (rows,):
            if size % side:
                raise UserError(f"wave: templates of side {side} do not divide the {rows}×{columns} {matrix} matrices")
        if matrix in ("qkv", "proj") and side % head_size and head_size % side:
            raise UserError(f"wave: templates of side {side} cut through heads of size {head_size}: take a multiple")
        if name in MATRICES:
            return self.counts[name], side, side
        count = (self.embeddings or rows // side) if name in _EMBEDDINGS else self.vectors
        return count, side, columns

    def require(self, spec: Spec) -> None:
        """Raise `UserError` if templates do not divide the parameters of a spec, or cut through heads."""
        shapes = _shapes(spec)
        for name in self._templated():
            self._shape(name, *shapes[name][1:], spec)

    def initial(self, spec: Spec) -> State:
        """Initialise templates N(0, 0.02²), scalers of variance 1 / templates, biases 0, gains 1; the rest as in timm.

        In width mode embeddings are initialised like the matrices. The first template of a bias or gain is 1, and its
        first scaler is the value of that bias or gain. The other templates are N(0, 0.1²), their scalers 0.
        """
        state = build(spec).state_dict()
        genes: State = {}
        templated = self._templated()
        for name, (layers, rows, columns) in _shapes(spec).items():
            if name not in templated:
                if PARTS[name].layered:
                    genes[f"layers.{name}"] = _stacked(state, PARTS[name], spec.depth)[..., 0]
                continue
            count, height, width = self._shape(name, rows, columns, spec)
            genes[f"templates.{name}"] = torch.randn(count, height, width) * _deviation(name)
            if name in _VECTORS:
                genes[f"templates.{name}"][0] = 1
                genes[f"scalers.{name}"] = torch.zeros(layers, count, rows // height, 1)
                genes[f"scalers.{name}"][:, 0] = float(name in _GAINS)
            else:
                genes[f"scalers.{name}"] = random_scalers(layers, count, rows // height, columns // width)
        return genes | self._untemplated(state)

    def _untemplated(self, state: Mapping[str, Tensor]) -> State:
        """Copy the parameters outside blocks that have no templates."""
        made = {part.parameter for part in self._templated().values()}
        return {
            name: tensor.detach().clone()
            for name, tensor in state.items()
            if not name.startswith("blocks.") and name not in made
        }

    def closed_form(self, state: Mapping[str, Tensor], spec: Spec) -> State:
        """Return the genes whose templates come closest to all layers together."""
        templates: State = {}
        for name, part in self._templated().items():
            matrices = _stacked(state, part, spec.depth)
            _, rows, columns = matrices.shape
            shape = self._shape(name, rows, columns, spec)
            templates[f"templates.{name}"] = best_templates(matrices, *shape, _deviation(name))
        return self.closest(state, spec, templates)

    def closest(self, state: Mapping[str, Tensor], spec: Spec, templates: Genes) -> State:
        """Return the genes with these templates that come closest to a model."""
        genes = dict(templates) | self._untemplated(state)
        for name, part in PARTS.items():
            if f"templates.{name}" in genes:
                matrices = _stacked(state, part, spec.depth)
                genes[f"scalers.{name}"] = fitted_scalers(matrices, genes[f"templates.{name}"])
            elif part.layered:
                genes[f"layers.{name}"] = _stacked(state, part, spec.depth)[..., 0]
        return genes

    def frozen(self, genes: Genes, spec: Spec) -> set[str]:
        """Return the genes that the fit of scalers leaves as they are: templates and embeddings."""
        embeddings = {PARTS[name].parameter for name in _EMBEDDINGS}
        return {name for name in genes if name.startswith("templates.") or name in embeddings}

    def assemble(self, genes: Genes, spec: Spec, image: ImageShape) -> State:
        """Generate the state dict of the timm model of `spec` from genes of that spec, differentiably.

        The position embedding is resampled if the shape of images is not that of the genes, `image`. The state has no
        head if the genes have none.
        """
        state: State = {name: gene for name, gene in genes.items() if name.split(".")[0] not in _PREFIXES}
        for name, part in PARTS.items():
            if f"templates.{name}" in genes:
                matrices = kron_sum(genes[f"scalers.{name}"], genes[f"templates.{name}"])
                state |= _unstacked(matrices, name, spec)
            elif part.layered:
                state |= _unstacked(genes[f"layers.{name}"][..., None], name, spec)
        old = [side // spec.patch for side in image.sides]
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(spec.grid), old, num_prefix_tokens=0)
        return state

    def resized(self, genes: Genes, source: Spec, spec: Spec, rule: str, tiled_head: bool) -> State:
        """Resize genes to another depth and width; templates do not change. See `Wave._resized`."""
        target: State = {}
        shapes = _shapes(spec)
        for gene, tensor in genes.items():
            prefix, _, name = gene.partition(".")
            if prefix == "scalers":
                target[gene] = _resized_scalers(name, tensor, genes[f"templates.{name}"], shapes[name], rule)
            elif prefix == "layers":
                target[gene] = interpolate_layers(tensor, spec.depth, nearest=rule == "nearest")
            elif prefix != "head":
                target[gene] = tensor
            elif spec.classes == source.classes and (spec.width == source.width or tiled_head):
                target[gene] = tile(tensor, 1, spec.width, inputs=True) if tensor.ndim == 2 else tensor
        return target


def _deviation(name: str) -> float:
    """Return the standard deviation of a part's templates.

    It is 0.1 for biases and norms: at 1, a step of all scalers together would move a gain too far.
    """
    return 0.1 if name in _VECTORS else DEVIATION


def _shapes(spec: Spec) -> dict[str, tuple[int, int, int]]:
    """Return layers, rows and columns of every part."""
    state = prototype(spec).state_dict()
    return {name: tuple(_stacked(state, part, spec.depth).shape) for name, part in PARTS.items()}  # type: ignore[misc]


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
        return {part.parameter: matrices.reshape(-1, spec.image.channels, spec.patch, spec.patch)}
    tensors = (matrices if name in MATRICES else matrices[..., 0]).unbind()
    if part.layered:
        return {f"blocks.{layer}.{part.parameter}": tensor for layer, tensor in enumerate(tensors)}
    return {part.parameter: tensors[0]}


def _resized_scalers(name: str, scalers: Tensor, templates: Tensor, shape: tuple[int, int, int], rule: str) -> Tensor:
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
