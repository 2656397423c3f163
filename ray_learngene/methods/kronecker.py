"""Weight templates: a matrix as a sum of Kronecker products, evaluated, fitted and resampled.

    W = Σ_t S(t) ⊗ T(t),    W[a·w1 + i, b·w2 + j] = Σ_t S(t)[a, b] · T(t)[i, j]

with templates T `[templates, w1, w2]` that all layers and sizes share, and scalers S `[layers, templates, rows / w1,
columns / w2]` of each layer. A block of W is a linear combination of templates, so that `[q; k; v]` and the heads stay
contiguous. WAVE (arXiv 2406.17503) writes T ⊗ S, which is the same up to a fixed permutation of rows and columns.

Rearranged so that every block is a row, the stacked matrices are a product of rank `templates`; hence the closed form:
the best templates of given matrices are a truncated singular value decomposition (Van Loan and Pitsianis, 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Deviation of the entries of a matrix's templates, at initialisation and as the closed form scales them.
DEVIATION = 0.02


def kron_sum(scalers: Tensor, templates: Tensor) -> Tensor:
    """Σ_t S(t) ⊗ T(t) of every layer: one matrix product and a permutation of its blocks.

    Args:
        scalers: `[layers, templates, a, b]`.
        templates: `[templates, w1, w2]`.

    Returns:
        `[layers, a·w1, b·w2]`.
    """
    layers, count, rows, columns = scalers.shape
    _, height, width = templates.shape
    blocks = scalers.permute(0, 2, 3, 1).reshape(-1, count) @ templates.reshape(count, -1)
    blocks = blocks.reshape(layers, rows, columns, height, width)
    return blocks.permute(0, 1, 3, 2, 4).reshape(layers, rows * height, columns * width)


def as_blocks(matrices: Tensor, height: int, width: int) -> Tensor:
    """The blocks of `[layers, a·height, b·width]` matrices as rows: `[layers·a·b, height·width]`."""
    layers, rows, columns = matrices.shape
    grid = matrices.reshape(layers, rows // height, height, columns // width, width)
    return grid.permute(0, 1, 3, 2, 4).reshape(-1, height * width)


def best_templates(matrices: Tensor, count: int, height: int, width: int, deviation: float = DEVIATION) -> Tensor:
    """The `count` templates whose combinations are closest to the matrices in the Frobenius norm.

    They are the leading right singular vectors of the rearranged matrices, scaled to the deviation that templates are
    drawn with. Where the matrices have fewer than `count` independent blocks the others are random, so that a training
    that starts here can use them.

    Args:
        matrices: `[layers, rows, columns]`.
        deviation: Root mean square of a template's entries.

    Returns:
        `[count, height, width]`.
    """
    blocks = as_blocks(matrices, height, width).double()
    few = len(blocks) <= blocks.shape[1]
    # the eigenvectors of the smaller Gram matrix: in double precision they are exact to single precision
    values, vectors = torch.linalg.eigh(blocks @ blocks.T if few else blocks.T @ blocks)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    rank = int((values > values[0] * 1e-14).sum())
    vectors = vectors[:, :rank]
    vectors = (vectors.T @ blocks) / values[:rank, None].sqrt() if few else vectors.T
    templates = torch.randn(count, height * width, generator=torch.Generator().manual_seed(0)) * deviation
    templates[:rank] = (vectors * (deviation * (height * width) ** 0.5)).float()
    return templates.reshape(count, height, width).to(matrices.dtype)


def fitted_scalers(matrices: Tensor, templates: Tensor) -> Tensor:
    """The scalers with which the templates come closest to the matrices, by least squares.

    Args:
        matrices: `[layers, a·w1, b·w2]`.
        templates: `[templates, w1, w2]`; they may be linearly dependent.

    Returns:
        `[layers, templates, a, b]`.
    """
    count, height, width = templates.shape
    layers, rows, columns = matrices.shape
    blocks, flat = as_blocks(matrices, height, width).double(), templates.reshape(count, -1).double()
    scalers = blocks @ flat.T @ torch.linalg.pinv(flat @ flat.T, hermitian=True, rtol=1e-12)
    grid = scalers.reshape(layers, rows // height, columns // width, count)
    return grid.permute(0, 3, 1, 2).contiguous().to(matrices.dtype)


def random_scalers(layers: int, count: int, rows: int, columns: int) -> Tensor:
    """Scalers of variance 1 / `count` from torch's global generator: `[layers, count, rows, columns]`.

    Those of one block have unit norm, so that every block is as large as a template, not only the average one.
    """
    return torch.nn.functional.normalize(torch.randn(layers, count, rows, columns), dim=1)


def interpolate_layers(tensor: Tensor, depth: int, *, nearest: bool = False) -> Tensor:
    """`[layers, ...]` to `[depth, ...]`, linearly (or by the nearest layer) in relative depth.

    The first and the last layer stay what they are, a single layer is the middle one, and an equal depth changes
    nothing, not even by rounding.
    """
    layers = len(tensor)
    if depth == layers:
        return tensor
    # the place of a layer among the given ones in units of 1 / steps, exactly
    steps = max(2 * (depth - 1), 2)
    places = [2 * layer * (layers - 1) for layer in range(depth)] if depth > 1 else [layers - 1]
    below = [place // steps for place in places]
    share = torch.tensor([place % steps / steps for place in places], dtype=tensor.dtype, device=tensor.device)
    if nearest:
        share = (share >= 0.5).to(tensor.dtype)
    above = [min(index + 1, layers - 1) for index in below]
    return torch.lerp(tensor[below], tensor[above], share.reshape(-1, *[1] * (tensor.ndim - 1)))


def tile(tensor: Tensor, dim: int, size: int, *, inputs: bool = False) -> Tensor:
    """A dimension at another size: index i of the result is index i modulo the old size.

    A larger one repeats what is there, a smaller one keeps the first. Along the inputs of a matrix every repetition
    has its share of the weight, so that a model whose width is multiplied computes what it did.
    """
    old = tensor.shape[dim]
    if size == old:
        return tensor
    index = torch.arange(size, device=tensor.device) % old
    tensor = tensor.index_select(dim, index)
    if inputs:
        copies = torch.bincount(index, minlength=old)[index]
        tensor = tensor / copies.reshape([size if each == dim % tensor.ndim else 1 for each in range(tensor.ndim)])
    return tensor
