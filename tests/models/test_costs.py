import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ray_learngene.models import costs
from ray_learngene.models.specs import PRESETS, Spec, build

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
        model(torch.zeros(1, 3, spec.image, spec.image))
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
        model(torch.zeros(batch, 3, spec.image, spec.image))
    measured = sum(storage.nbytes() for storage in kept.values())
    assert costs.activation_memory(spec, batch) == pytest.approx(measured, rel=0.1)


def test_a_measurement_that_is_not_repeatable_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = [([9.0, 9.0], 5.0), ([3.0, 3.0], 1.2), ([1.0, 1.0], 1.0)]
    monkeypatch.setattr(costs, "_timed", lambda timer, runs: (torch.tensor(timed[0][0]), timed.pop(0)[1]))
    spec = PRESETS["nano"]
    latency = costs.measure_latency(build(spec), spec.image)
    assert (latency.median_ms, latency.spread, len(timed)) == (3.0, 1.2, 1)


def test_the_spread_of_a_measurement_is_that_between_its_rounds() -> None:
    class Slower:
        passes = 0

        def timeit(self, number: int) -> object:
            self.passes += 1
            self.median = 0.005 if self.passes > 8 else 0.001
            return self

    milliseconds, spread = costs._timed(Slower(), 10)  # type: ignore[arg-type]
    assert milliseconds.tolist() == pytest.approx([1.0] * 8 + [5.0] * 2) and spread == pytest.approx(5)


def test_latency_records_what_it_was_measured_on() -> None:
    spec = PRESETS["nano"]
    latency = costs.measure_latency(build(spec), spec.image, batch=2, threads=1, runs=10)
    assert 0 < latency.median_ms <= latency.p90_ms
    assert (latency.batch, latency.dtype, latency.threads, latency.runs) == (2, "float32", 1, 10)
