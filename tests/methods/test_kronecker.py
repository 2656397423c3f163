"""The mathematics of templates: Kronecker sums, their closed form, interpolation over layers, tiling."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.methods.kronecker import best_templates, fitted_scalers, interpolate_layers, kron_sum, tile

sides = st.integers(1, 4)


def brute_force(scalers: torch.Tensor, templates: torch.Tensor) -> torch.Tensor:
    return torch.stack([sum(torch.kron(s, t) for s, t in zip(layer, templates, strict=True)) for layer in scalers])


@given(sides, sides, sides, sides, sides, sides)
def test_a_kronecker_sum_and_its_gradients_equal_brute_force(layers, count, rows, columns, height, width) -> None:
    torch.manual_seed(layers + 7 * count + 11 * rows)
    scalers = torch.randn(layers, count, rows, columns, dtype=torch.float64, requires_grad=True)
    templates = torch.randn(count, height, width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(layers, rows * height, columns * width, dtype=torch.float64)
    made, expected = kron_sum(scalers, templates), brute_force(scalers, templates)
    torch.testing.assert_close(made, expected)
    for one, other in zip(
        torch.autograd.grad((made * weights).sum(), (scalers, templates)),
        torch.autograd.grad((expected * weights).sum(), (scalers, templates)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences() -> None:
    scalers = torch.randn(2, 3, 2, 1, dtype=torch.float64, requires_grad=True)
    templates = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kron_sum, (scalers, templates))


@given(sides, st.integers(1, 3), st.integers(1, 3), sides, sides)
@settings(max_examples=40)
def test_the_error_of_the_closed_form_falls_with_counts_to_nothing(layers, rows, columns, height, width) -> None:
    torch.manual_seed(layers + 5 * rows + 17 * columns)
    matrices = torch.randn(layers, rows * height, columns * width)
    rank = min(layers * rows * columns, height * width)
    errors = []
    for count in range(1, rank + 2):
        templates = best_templates(matrices, count, height, width)
        assert templates.shape == (count, height, width)
        errors.append(float((kron_sum(fitted_scalers(matrices, templates), templates) - matrices).norm()))
    for worse, better in itertools.pairwise(errors):
        assert better <= worse + 1e-5
    assert errors[rank - 1] < 1e-5 * float(matrices.norm()) and errors[rank] < 1e-5 * float(matrices.norm())


def test_the_error_is_that_of_the_discarded_singular_values() -> None:
    matrices = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    blocks = matrices.reshape(3, 2, 4, 3, 4).permute(0, 1, 3, 2, 4).reshape(-1, 16)
    values = torch.linalg.svdvals(blocks.double())
    templates = best_templates(matrices, 5, 4, 4)
    error = (kron_sum(fitted_scalers(matrices, templates), templates) - matrices).double().square().sum()
    torch.testing.assert_close(error, values[5:].square().sum(), rtol=1e-5, atol=1e-8)


def test_least_squares_cannot_be_improved_and_bears_equal_templates() -> None:
    torch.manual_seed(0)
    matrices, templates = torch.randn(2, 6, 4), torch.randn(3, 3, 2)
    templates = torch.cat([templates, templates[:1]])  # linearly dependent
    scalers = fitted_scalers(matrices, templates).double().requires_grad_()
    residual = (kron_sum(scalers, templates.double()) - matrices).square().sum()
    assert float(torch.autograd.grad(residual, scalers)[0].abs().max()) < 1e-4


@given(st.integers(1, 12), st.integers(1, 30), st.booleans())
def test_layers_are_interpolated_in_relative_depth(layers: int, depth: int, nearest: bool) -> None:
    line = torch.linspace(0, 1, layers, dtype=torch.float64)[:, None] * torch.ones(1, 3, dtype=torch.float64)
    made = interpolate_layers(line, depth, nearest=nearest)
    if depth == layers:
        assert made is line
    elif depth == 1 and not nearest:
        assert torch.allclose(made, (line[:1] + line[-1:]) / 2)
    elif nearest:
        assert all(any(torch.equal(row, given_row) for given_row in line) for row in made)
        assert torch.equal(made, made.sort(0).values)
    elif layers > 1:
        torch.testing.assert_close(made[:, 0], torch.linspace(0, 1, depth, dtype=torch.float64))


@given(st.integers(1, 8), st.integers(1, 4))
def test_tiled_inputs_sum_to_what_they_were(old: int, times: int) -> None:
    tensor = torch.randn(2, old)
    wide = tile(tensor, 1, times * old, inputs=True)
    torch.testing.assert_close(wide.unflatten(1, (times, old)).sum(1), tensor)
    assert torch.equal(tile(tensor, 1, times * old)[:, -old:], tensor)
    assert torch.equal(tile(tensor, 1, 1), tensor[:, :1])
