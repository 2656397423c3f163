"""Weight templates for any family: the labels of axes say which parameters have templates, and how they are resized.

In depth mode every matrix of a block has templates, chain by chain, and the other parameters are as in `wave.py`. A
template is as wide as the smaller side of its matrix, or as the largest part that divides an axis. In width mode
(`template=SIDE`) every axis that scales consists of templates; an axis of heads has as many as the width has templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ray_learngene.config.image import ImageShape
from ray_learngene.errors import UserError
from ray_learngene.methods.generated import Genes, State
from ray_learngene.methods.kronecker import (
    DEVIATION,
    best_templates,
    fitted_scalers,
    interpolate_layers,
    kron_sum,
    random_scalers,
    tile,
)
from ray_learngene.methods.shared_weights import is_head
from ray_learngene.models.build import build, meta_model, shapes_of
from ray_learngene.models.layout import (
    SCALING,
    axes,
    block_lists,
    chains,
    layered,
    resampled,
    scales_input,
    split,
)
from ray_learngene.models.specs import Spec

_VECTOR_DEVIATION = 0.1


@dataclass(frozen=True)
class Part:
    """A parameter of all layers of a chain, or one outside blocks, as matrices `[layers, rows, columns]`.

    Attributes:
        names: The parameter in every layer; one name if it is outside blocks.
        dims: Its axes that scale: rows, and columns if there are two. All other axes are folded into the columns.
        groups: Equal parts of rows and of columns that are resized separately.
        matrix: The entry of MATRICES whose count and side it uses; None for one that is no matrix of a block.
        separate: Whether query, key and value are parameters of their own.
        sums: Whether columns are summed over, so that repeated ones are divided.
        layer_dim: The axis of layers of a parameter outside blocks that has one.
    """

    names: tuple[str, ...]
    dims: tuple[int, ...]
    groups: tuple[int, int]
    matrix: str | None = None
    separate: bool = False
    sums: bool = False
    layer_dim: int | None = None

    def stacked(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter of all layers as matrices."""
        tensors = [state[name].detach() for name in self.names]
        return torch.stack([self._matrix(tensor) for tensor in tensors])

    def sizes(self, spec: Spec) -> tuple[int, int]:
        """Count the rows and columns of its matrices in the model of a spec."""
        shape = shapes_of(spec)[self.names[0]]
        return shape[self.dims[0]], shape.numel() // shape[self.dims[0]]

    def layers(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter of all layers `[layers, ...]` as it is."""
        if self.layer_dim is not None:
            return state[self.names[0]].detach().movedim(self.layer_dim, 0)
        return torch.stack([state[name].detach() for name in self.names])

    def unlayered(self, layers: Tensor) -> State:
        """Invert `layers`."""
        if self.layer_dim is not None:
            return {self.names[0]: layers.movedim(0, self.layer_dim)}
        return dict(zip(self.names, layers.unbind(), strict=True))

    def unstacked(self, matrices: Tensor, shape: torch.Size) -> State:
        """Invert `stacked` for parameters of this shape."""
        return {name: self._tensor(matrix, shape) for name, matrix in zip(self.names, matrices.unbind(), strict=True)}

    def _order(self, dims: int) -> list[int]:
        """Return the axes in the order rows, folded ones, columns."""
        folded = [dim for dim in range(dims) if dim not in self.dims[:2]]
        return [self.dims[0], *folded, *self.dims[1:2]]

    def _matrix(self, tensor: Tensor) -> Tensor:
        return tensor.permute(self._order(tensor.ndim)).reshape(tensor.shape[self.dims[0]], -1)

    def _tensor(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        order = self._order(len(shape))
        back = [order.index(dim) for dim in range(len(shape))]
        return matrix.reshape([shape[dim] for dim in order]).permute(back)


@lru_cache(maxsize=64)
def parts(spec: Spec, wide: bool) -> dict[str, Part]:
    """Return the parameters with templates or one value per layer, by their name in the genes.

    Args:
        wide: In width mode parameters outside blocks have templates too.
    """
    labels, shapes, lists = axes(spec), shapes_of(spec), block_lists(spec)
    modules: dict[str, nn.Module] = dict(meta_model(spec).named_modules())

    def part(names: tuple[str, ...], in_block: bool) -> Part:
        name = names[0]
        dims = tuple(dim for dim, axis in enumerate(labels[name]) if axis.kind in SCALING)
        rows, columns = (dims[0], dims[1] if len(dims) > 1 else None) if dims else (None, None)
        size = shapes[name].numel() // max(1, shapes[name][rows] if rows is not None else 1)
        folded = size // shapes[name][columns] if columns is not None else 1
        groups = (
            labels[name][rows].groups if rows is not None else 1,
            labels[name][columns].groups * folded if columns is not None else 1,
        )
        matrix = _matrix_of(name) if in_block and columns is not None else None
        module = modules.get(name.rpartition(".")[0], nn.Identity())
        sums = columns is not None and name.endswith("weight") and scales_input(module, columns)
        separate = matrix == "qkv" and groups[0] == 1
        return Part(names, dims, groups, matrix, separate, sums, layered(spec).get(name))

    found = {}
    for chain, blocks in chains(spec).items():
        for name in shapes:
            if name.startswith(f"{blocks[0]}."):
                rest = name.removeprefix(f"{blocks[0]}.")
                found[f"{chain}.{rest}"] = part(tuple(f"{block}.{rest}" for block in blocks), True)
    for name in shapes:
        if split(name, lists) is None and not is_head(name, spec):
            each = part((name,), False)
            if each.layer_dim is not None or (wide and each.dims):
                found[name] = each
    return found


def _matrix_of(name: str) -> str:
    found = re.search(r"\.(fc1|fc2)(_g|_x)?\.weight$", name)
    return found[1] if found else "qkv" if re.search(r"\.(qkv|kv|q|k|v)(_proj)?\.weight$", name) else "proj"


@dataclass(frozen=True)
class LabelledTemplates:
    """Templates of a family's model, with the options of `wave`.

    Attributes:
        counts: Templates of qkv, proj, fc1 and fc2.
        sides: Sides of these templates in width mode; None: depth mode.
        vectors: Templates of each bias and norm.
        embeddings: Templates of each parameter outside blocks; None: enough to represent it exactly.
    """

    counts: Mapping[str, int]
    sides: Mapping[str, int] | None
    vectors: int
    embeddings: int | None

    @property
    def wide(self) -> bool:
        return self.sides is not None

    def templated(self, spec: Spec) -> dict[str, Part]:
        """Return the parts with templates.

        Raises:
            UserError: width mode on a model that has several widths, or values of every layer outside blocks.
        """
        if self.wide and (spec.depths or layered(spec)):
            has = "stages of several widths" if spec.depths else f"values of every layer ({min(layered(spec))})"
            raise UserError(f"wave:template changes widths, and {spec.architecture} has {has}: leave the option out")
        every = parts(spec, self.wide)
        return {key: part for key, part in every.items() if part.layer_dim is None and (part.matrix or self._one(part))}

    def _one(self, part: Part) -> bool:
        return self.wide and bool(part.dims)

    def shape(self, spec: Spec, part: Part, rows: int, columns: int) -> tuple[int, int, int]:
        """Return the number, height and width of a part's templates.

        Raises:
            UserError: templates do not divide the part, or cut through heads.
        """
        each = (rows // part.groups[0], columns // part.groups[1])
        if not self.sides:
            height, width = (_divisor(size, min(each)) for size in each)
        else:
            side, head = self.sides[part.matrix or "proj"], spec.width // spec.heads
            if side % head and head % side:
                raise UserError(f"wave: templates of side {side} cut through heads of size {head}: take a multiple")
            height = self._unit(part.names[0], each[0], side, spec)
            width = self._unit(part.names[0], each[1], side, spec) if len(part.dims) > 1 else columns
        if part.matrix:
            count = self.counts[part.matrix]
            return (count + 2) // 3 if part.separate else count, height, width
        if len(part.names) == 1 and split(part.names[0], block_lists(spec)) is None:
            return self.embeddings or (rows // height) * (columns // width), height, width
        return self.vectors, height, width

    def _unit(self, name: str, size: int, side: int, spec: Spec) -> int:
        if size % side == 0:
            return side
        if size * side % spec.width == 0 and size < spec.width:  # an axis of heads
            return size * side // spec.width
        raise UserError(f"wave: templates of side {side} do not divide {name}, {size} wide, of {spec.architecture}")

    def require(self, spec: Spec) -> None:
        """Raise `UserError` if templates do not divide the parameters of a spec, or cut through heads."""
        for part in self.templated(spec).values():
            self.shape(spec, part, *part.sizes(spec))

    # Genes.

    def initial(self, spec: Spec) -> State:
        """Initialise matrices of blocks at random; the templates of all other parts give timm's initialisation."""
        state: State = build(spec).state_dict()
        templates, genes = State(), State()
        templated = self.templated(spec)
        for key, part in templated.items():
            matrices = part.stacked(state)
            shape = count, height, width = self.shape(spec, part, *matrices.shape[1:])
            if part.matrix:
                templates[f"templates.{key}"] = torch.randn(shape) * DEVIATION
                grid = (matrices.shape[1] // height, matrices.shape[2] // width)
                genes[f"scalers.{key}"] = random_scalers(len(matrices), count, *grid)
            elif bool((matrices == matrices.flatten()[0]).all()):  # a bias, a gain
                templates[f"templates.{key}"] = torch.randn(shape) * _VECTOR_DEVIATION
                templates[f"templates.{key}"][0] = 1
            else:
                templates[f"templates.{key}"] = best_templates(matrices, *shape, _VECTOR_DEVIATION)
        return self.closest(state, spec, templates) | genes

    def closed_form(self, state: Mapping[str, Tensor], spec: Spec) -> State:
        """Return the genes whose templates come closest to all layers together."""
        templates = State()
        for key, part in self.templated(spec).items():
            matrices = part.stacked(state)
            shape = self.shape(spec, part, *matrices.shape[1:])
            deviation = DEVIATION if part.matrix else _VECTOR_DEVIATION
            templates[f"templates.{key}"] = best_templates(matrices, *shape, deviation)
        return self.closest(state, spec, templates)

    def closest(self, state: Mapping[str, Tensor], spec: Spec, templates: Genes) -> State:
        """Return the genes with these templates that come closest to a model."""
        every = parts(spec, self.wide)
        named = {name for part in every.values() for name in part.names}
        genes = dict(templates) | {name: state[name].detach().clone() for name in state if name not in named}
        for key, part in every.items():
            if f"templates.{key}" in templates:
                genes[f"scalers.{key}"] = fitted_scalers(part.stacked(state), templates[f"templates.{key}"])
            else:
                genes[f"layers.{key}"] = part.layers(state).clone()
        return genes

    def frozen(self, genes: Genes, spec: Spec) -> set[str]:
        """Return the genes that the fit of scalers leaves as they are: templates and embeddings."""
        outside = {name for name in shapes_of(spec) if split(name, block_lists(spec)) is None}
        return {
            name
            for name, gene in genes.items()
            if name.startswith("templates.") or (name in outside and gene.ndim > 1 and not is_head(name, spec))
        }

    def assemble(self, genes: Genes, spec: Spec, image: ImageShape) -> State:
        """Generate the state dict of the timm model of `spec`, differentiably, from genes for images of a shape."""
        shapes = shapes_of(spec.replace(image=image))
        state: State = {name: gene for name, gene in genes.items() if name in shapes}
        for key, part in parts(spec, self.wide).items():
            if f"templates.{key}" in genes:
                matrices = kron_sum(genes[f"scalers.{key}"], genes[f"templates.{key}"])
                state |= part.unstacked(matrices, shapes[part.names[0]])
            else:
                state |= part.unlayered(genes[f"layers.{key}"])
        return resampled(state, spec, image)

    def resized(self, genes: Genes, source: Spec, spec: Spec, rule: str, tiled_head: bool) -> State:
        """Resize genes to another depth and width; templates do not change. See `Wave._resized`."""
        at_source = spec.replace(image=source.image)
        shapes, every = shapes_of(at_source), parts(at_source, self.wide)
        target: State = {}
        for key, part in every.items():
            layers = len(part.names) if part.layer_dim is None else spec.depth
            stored = key if f"templates.{key}" in genes or f"layers.{key}" in genes else _other_chain(key)
            if f"templates.{stored}" in genes:
                templates = target[f"templates.{key}"] = genes[f"templates.{stored}"]
                rows, columns = part.sizes(at_source)
                grid = (rows // templates.shape[1], columns // templates.shape[2])
                target[f"scalers.{key}"] = _resized_scalers(part, genes[f"scalers.{stored}"], layers, grid, rule)
            else:
                values = genes[f"layers.{stored}"]
                target[f"layers.{key}"] = interpolate_layers(values, layers, nearest=rule == "nearest")
        for name in shapes:
            if name in genes and not is_head(name, spec):
                target[name] = genes[name]
            elif name in genes and spec.classes == source.classes and (spec.width == source.width or tiled_head):
                head = genes[name]
                target[name] = tile(head, 1, shapes[name][1], inputs=True) if head.ndim == 2 else head
        return target


def _other_chain(key: str) -> str:
    """Name the first chain of the same list, for a chain that the learngene lacks."""
    return re.sub(r":\d+\.", ".", key, count=1)


def _resized_scalers(part: Part, scalers: Tensor, layers: int, grid: tuple[int, int], rule: str) -> Tensor:
    if part.matrix and rule == "random":
        return random_scalers(layers, scalers.shape[1], *grid)
    if part.matrix and rule == "identical":
        scalers = scalers.mean(0, keepdim=True).expand(layers, -1, -1, -1)
    elif len(scalers) > 1 or layers > 1:
        scalers = interpolate_layers(scalers, layers, nearest=rule == "nearest")
    rows = scalers.unflatten(2, (part.groups[0], -1))
    scalers = tile(rows, 3, grid[0] // part.groups[0]).flatten(2, 3)
    if len(part.dims) < 2:
        return scalers
    columns = scalers.unflatten(3, (part.groups[1], -1))
    return tile(columns, 4, grid[1] // part.groups[1], inputs=part.sums).flatten(3, 4)


def _divisor(size: int, bound: int) -> int:
    """Return the largest divisor of `size` up to `bound`."""
    return next(each for each in range(bound, 0, -1) if size % each == 0)
