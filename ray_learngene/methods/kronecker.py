"""Weight templates: evaluate, fit and resample matrices that are sums of Kronecker products.

    W = Σ_t S(t) ⊗ T(t),    W[a·w1 + i, b·w2 + j] = Σ_t S(t)[a, b] · T(t)[i, j]

All layers and sizes share the templates T `[templates, w1, w2]`. Each layer has its own scalers S `[layers, templates,
rows / w1, columns / w2]`. A block of W is a linear combination of templates, so `[q; k; v]` and the heads stay
contiguous. WAVE (arXiv 2406.17503) writes T ⊗ S, which is the same up to a fixed permutation of rows and columns.

With every block rearranged into a row, the stacked matrices are a product of rank `templates`. This gives a closed
form: a truncated singular value decomposition yields the best templates (Van Loan and Pitsianis, 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Standard deviation of the entries of a matrix's templates, at initialisation and in the closed form.
DEVIATION = 0.02
# The matrices of a block that have templates; order of the numbers in the options `counts` and `template`.
MATRICES = ("qkv", "proj", "fc1", "fc2")


def kron_sum(scalers: Tensor, templates: Tensor) -> Tensor:
    """Compute Σ_t S(t) ⊗ T(t) for every layer, as one matrix product and a permutation of its blocks.

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
    """Rearrange the blocks of matrices `[layers, a·height, b·width]` into rows `[layers·a·b, height·width]`."""
    layers, rows, columns = matrices.shape
    grid = matrices.reshape(layers, rows // height, height, columns // width, width)
    return grid.permute(0, 1, 3, 2, 4).reshape(-1, height * width)


def best_templates(matrices: Tensor, count: int, height: int, width: int, deviation: float = DEVIATION) -> Tensor:
    """Find the `count` templates whose combinations are closest to the matrices in the Frobenius norm.

    They are the leading right singular vectors of the rearranged matrices, scaled to `deviation`. If the matrices have
    fewer than `count` independent blocks, the remaining templates are random, so that training can use them.

    Args:
        matrices: `[layers, rows, columns]`.
        deviation: Root mean square of a template's entries; by default that of the initialisation.

    Returns:
        `[count, height, width]`.
    """
    blocks = as_blocks(matrices, height, width).double()
    few = len(blocks) <= blocks.shape[1]
    # eigenvectors of the smaller Gram matrix: computed in double precision, they are exact in single precision
    values, vectors = torch.linalg.eigh(blocks @ blocks.T if few else blocks.T @ blocks)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    rank = int((values > values[0] * 1e-14).sum())
    vectors = vectors[:, :rank]
    vectors = (vectors.T @ blocks) / values[:rank, None].sqrt() if few else vectors.T
    templates = torch.randn(count, height * width, generator=torch.Generator().manual_seed(0)) * deviation
    templates[:rank] = (vectors * (deviation * (height * width) ** 0.5)).float()
    return templates.reshape(count, height, width).to(matrices.dtype)


def fitted_scalers(matrices: Tensor, templates: Tensor) -> Tensor:
    """Fit scalers by least squares, so that the templates come closest to the matrices.

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
    """Sample scalers `[layers, count, rows, columns]` of variance 1 / `count` from torch's global random generator.

    The scalers of one block have unit norm, so that every block, not only the average one, is as large as a template.
    """
    return torch.nn.functional.normalize(torch.randn(layers, count, rows, columns), dim=1)


def interpolate_layers(tensor: Tensor, depth: int, *, nearest: bool = False) -> Tensor:
    """Resample `[layers, ...]` to `[depth, ...]` in relative depth, linearly or by the nearest layer.

    The first and the last layer do not change. A depth of 1 gives the middle. An equal depth returns the tensor itself,
    without rounding.
    """
    layers = len(tensor)
    if depth == layers:
        return tensor
    # position of each new layer among the given ones in units of 1 / steps: integers, hence exact
    steps = max(2 * (depth - 1), 2)
    places = [2 * layer * (layers - 1) for layer in range(depth)] if depth > 1 else [layers - 1]
    below = [place // steps for place in places]
    share = torch.tensor([place % steps / steps for place in places], dtype=tensor.dtype, device=tensor.device)
    if nearest:
        share = (share >= 0.5).to(tensor.dtype)
    above = [min(index + 1, layers - 1) for index in below]
    return torch.lerp(tensor[below], tensor[above], share.reshape(-1, *[1] * (tensor.ndim - 1)))


def tile(tensor: Tensor, dim: int, size: int, *, inputs: bool = False) -> Tensor:
    """Resize a dimension: index i of the result is index i modulo the old size.

    A larger size repeats the entries, a smaller one takes the first. `inputs` also divides each weight by the number of
    its repetitions, so that a model at a multiple of its width computes the same function.
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
