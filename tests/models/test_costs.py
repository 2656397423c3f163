import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ray_learngene.models import costs
from ray_learngene.models.build import build
from ray_learngene.models.specs import PRESETS, Spec

specs = st.builds(
    lambda heads, head_size, depth, grid, patch, classes, ratio: Spec(
        width=heads * head_size,
        depth=depth,
        heads=heads,
        image=grid * patch,
        patch=patch,
        classes=classes,
        mlp_ratio=ratio,
    ),
    heads=st.integers(1, 4),
    head_size=st.sampled_from([8, 16, 64]),
    depth=st.integers(1, 4),
    grid=st.integers(1, 5),
    patch=st.sampled_from([1, 2, 4]),
    classes=st.integers(1, 20),
    ratio=st.sampled_from([2.0, 3.0, 4.0]),
)


@given(specs)
@settings(max_examples=25)
def test_parameters_and_macs_equal_those_counted_on_the_real_model(spec: Spec) -> None:
    model = build(spec).eval()
    assert costs.parameters(spec) == sum(parameter.numel() for parameter in model.parameters())
    # the counter does not know the CPU's fused attention kernel: count the two products of the plain one
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, *spec.image))
    assert 2 * costs.macs(spec) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("preset", "depth", "millions"),
    [("s", 6, 11.40), ("s", 12, 22.05), ("s", 15, 27.37), ("b", 6, 44.04), ("b", 15, 107.83)],
)
def test_descendant_sizes_of_the_paper(preset: str, depth: int, millions: float) -> None:
    assert round(costs.parameters(PRESETS[preset].replace(depth=depth)) / 1e6, 2) == millions


@pytest.mark.parametrize("preset", ["nano", "micro"])
def test_activation_memory_is_within_a_tenth_of_what_autograd_keeps(preset: str) -> None:
    spec, batch = PRESETS[preset], 8
    model = build(spec)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(batch, *spec.image))
    measured = sum(storage.nbytes() for storage in kept.values())
    assert costs.activation_memory(spec, batch) == pytest.approx(measured, rel=0.1)
