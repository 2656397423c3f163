"""Other tensors in place of a module's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from ray_learngene.models.swapping import swapped


class Tied(nn.Module):
    """A module that knows one of its parts by two names, and has a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Linear(3, 3)
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.again(self.first(x)) + self.shift
        return found


def test_the_module_computes_with_other_tensors_and_has_its_own_again() -> None:
    module, x = Tied(), torch.randn(2, 3)
    before, own = module(x), dict(module.named_parameters()) | dict(module.named_buffers())
    others = {name: torch.randn_like(tensor).requires_grad_() for name, tensor in own.items()}
    for _ in range(2):  # the second time its places are known
        with swapped(module, others):
            inside = module(x)
        assert torch.equal(inside, functional_call(deepcopy(module), others, (x,)))
    gradients = torch.autograd.grad(inside.sum(), [*others.values()])
    assert all(torch.any(gradient != 0) for gradient in gradients)
    assert torch.equal(module(x), before)
    now = dict(module.named_parameters()) | dict(module.named_buffers())
    assert now.keys() == own.keys() and all(now[name] is tensor for name, tensor in own.items())


def test_it_has_its_own_tensors_again_after_an_error() -> None:
    module = nn.Linear(3, 3)
    weight = module.weight
    with pytest.raises(ZeroDivisionError), swapped(module, {"weight": torch.zeros(3, 3)}):
        assert not module.weight.any()
        raise ZeroDivisionError
    assert module.weight is weight


def test_an_unknown_name_changes_nothing() -> None:
    module = nn.Linear(3, 3)
    weight = module.weight
    with pytest.raises(KeyError, match="wait"), swapped(module, {"weight": torch.zeros(3, 3), "wait": weight}):
        pass
    assert module.weight is weight


def test_a_part_under_a_second_name() -> None:
    module, x, zeros = Tied(), torch.randn(2, 3), torch.zeros(3, 3)
    weight = module.first.weight
    with swapped(module, {"first.weight": torch.ones(3, 3), "again.weight": zeros}):
        assert torch.equal(module(x), module.first.bias.expand(2, 3))
    assert module.first.weight is weight
