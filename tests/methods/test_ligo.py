"""LiGO: the growth's algebra, its identity at equal size, and what is trained."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_learngene.errors import UserError
from ray_learngene.methods.ligo import mixed, widened
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import Spec
from tests.methods.trained import assert_untied, images_of, layer_of, learngene_of, specs, trained

SMALL = Spec(width=8, depth=2, heads=2, image=4, patch=2, classes=3)
LARGE = SMALL.replace(width=20, heads=5, depth=5)


@given(spec=specs)
@settings(max_examples=15)
def test_at_equal_size_it_is_the_source_itself(spec: Spec) -> None:
    method, learngene = create_method("ligo"), learngene_of("ligo", spec)
    model, adapter, source = method.expand(learngene, spec), method.adapter(learngene, spec), trained(spec)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert torch.equal(model.eval()(images_of(spec)), source(images_of(spec)))
    assert torch.equal(adapter.eval()(images_of(spec)), source(images_of(spec)))


@pytest.mark.parametrize(("layers", "copied"), [("stack", [0, 1, 0, 1, 0]), ("interlace", [0, 0, 0, 1, 1])])
def test_at_equal_width_layers_are_copied(layers: str, copied: list[int]) -> None:
    model = create_method("ligo", layers=layers).expand(learngene_of("ligo", SMALL), SMALL.replace(depth=5))
    assert_untied(model)
    for layer, of in enumerate(copied):
        for name, tensor in layer_of(trained(SMALL), of).items():
            assert torch.equal(layer_of(model, layer)[name], tensor)


def test_the_growth_is_its_formula() -> None:
    adapter = create_method("ligo").adapter(learngene_of("ligo", SMALL), LARGE)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    genes, grown, source = adapter.genes(), adapter.materialise().state_dict(), trained(SMALL)

    def expander(name: str) -> torch.Tensor:
        added = genes[f"width_scaler.{name}"]
        return torch.cat([torch.eye(added.shape[1]), added])

    def mix(name: str, layer: int) -> torch.Tensor:
        weights = genes[f"depth_scaler.{name}"][layer]
        return sum(weight * layer_of(source, of)[name] for of, weight in enumerate(weights))

    stream, hidden, q, k, v = map(expander, ("stream", "hidden", "q", "k", "v"))
    for layer in range(LARGE.depth):
        expected = {
            "attn.qkv.weight": torch.cat(
                [
                    rows @ part @ stream.T
                    for rows, part in zip((q, k, v), mix("attn.qkv.weight", layer).chunk(3), strict=True)
                ]
            ),
            "attn.qkv.bias": torch.cat(
                [rows @ part for rows, part in zip((q, k, v), mix("attn.qkv.bias", layer).chunk(3), strict=True)]
            ),
            "attn.proj.weight": stream @ mix("attn.proj.weight", layer) @ v.T,
            "attn.proj.bias": stream @ mix("attn.proj.bias", layer),
            "mlp.fc1.weight": hidden @ mix("mlp.fc1.weight", layer) @ stream.T,
            "mlp.fc1.bias": hidden @ mix("mlp.fc1.bias", layer),
            "mlp.fc2.weight": stream @ mix("mlp.fc2.weight", layer) @ hidden.T,
            "norm1.weight": stream @ mix("norm1.weight", layer),
            "norm2.bias": stream @ mix("norm2.bias", layer),
        }
        for name, tensor in expected.items():
            torch.testing.assert_close(grown[f"blocks.{layer}.{name}"], tensor, rtol=1e-4, atol=1e-4)
    state = source.state_dict()
    kernel = torch.einsum("os,schw->ochw", stream, state["patch_embed.proj.weight"])
    torch.testing.assert_close(grown["patch_embed.proj.weight"], kernel)
    torch.testing.assert_close(grown["pos_embed"], state["pos_embed"] @ stream.T)
    torch.testing.assert_close(grown["fc_norm.weight"], stream @ state["fc_norm.weight"])
    torch.testing.assert_close(grown["head.weight"], state["head.weight"] @ stream.T)
    assert torch.equal(grown["head.bias"], state["head.bias"])


def test_it_starts_with_the_source_in_the_first_channels_and_averages_in_the_new_ones() -> None:
    learngene, source = learngene_of("ligo", SMALL), trained(SMALL)
    adapter = create_method("ligo").adapter(learngene, LARGE)
    for name, gene in adapter.genes().items():
        if name.startswith("width_scaler."):
            assert (gene >= 0).all()
            torch.testing.assert_close(gene.sum(1), torch.ones(len(gene)))
    model = create_method("ligo").expand(learngene, LARGE)
    assert_untied(model)
    for part in range(3):  # the source's heads are the first heads, whole
        grown = model.blocks[0].attn.qkv.weight.chunk(3)[part]
        assert torch.equal(grown[:8, :8], source.blocks[0].attn.qkv.weight.chunk(3)[part])
    assert torch.equal(model.blocks[0].mlp.fc1.weight[:32, :8], source.blocks[0].mlp.fc1.weight)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, adapter.materialise().state_dict()[name])


def test_only_the_growth_is_trained() -> None:
    learngene = learngene_of("ligo", SMALL)
    adapter = create_method("ligo:fit=7:fit_lr=0.5").adapter(learngene, LARGE)
    assert (adapter.fit_steps, adapter.fit_lr) == (7, 0.5)
    names = {name.split(".")[0] for name in adapter.genes() if not name.startswith("source.")}
    assert names == {"depth_scaler", "width_scaler"}
    assert len(adapter.no_weight_decay()) == len(list(adapter.parameters()))
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    before = torch.nn.functional.cross_entropy(adapter(images_of(LARGE)), torch.tensor([0, 1]))
    before.backward()
    assert all(parameter.grad.any() for parameter in adapter.parameters())
    optimizer.step()
    after = torch.nn.functional.cross_entropy(adapter(images_of(LARGE)), torch.tensor([0, 1]))
    assert after < before
    for name, tensor in learngene.tensors.items():
        assert torch.equal(adapter.genes()[f"source.{name}"], tensor)
    plain = adapter.eval().materialise().eval()
    assert_untied(plain)
    torch.testing.assert_close(adapter(images_of(LARGE)), plain(images_of(LARGE)))


def test_a_head_for_other_classes_is_fresh_and_fitted() -> None:
    spec = LARGE.replace(classes=4)
    adapter = create_method("ligo").adapter(learngene_of("ligo", SMALL), spec, seed=3)
    trained_names = {name for name, _ in adapter.named_parameters()}
    assert {"head__weight", "head__bias"} <= trained_names
    assert adapter(images_of(spec)).shape == (2, 4)
    without = create_method("ligo").adapter(learngene_of("ligo", SMALL).without_head(), LARGE)
    assert "head__weight" in dict(without.named_parameters())


def test_an_adapter_can_be_copied_and_pickled_and_none_is_fitted_for_no_steps() -> None:
    learngene = learngene_of("ligo", SMALL)
    adapter = create_method("ligo").adapter(learngene, LARGE)
    for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert other.fit_steps == 100
        assert torch.equal(other(images_of(LARGE)), adapter(images_of(LARGE)))
    assert create_method("ligo:fit=0").adapter(learngene, LARGE) is None


def test_another_image_size() -> None:
    spec = LARGE.replace(image=8)
    model = create_method("ligo").expand(learngene_of("ligo", SMALL), spec)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 3)


@given(layers=st.integers(1, 4), more=st.integers(0, 3), rows=st.integers(1, 5), columns=st.integers(1, 5))
@settings(max_examples=20)
def test_growing_in_depth_and_then_in_width_is_growing_in_width_and_then_in_depth(layers, more, rows, columns) -> None:
    generator = torch.Generator().manual_seed(layers + 5 * rows)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    source, weights = draw(layers, rows, columns), draw(layers + more, layers)
    left, right = draw(rows + 2, rows), draw(columns + 1, columns)

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        return widened(widened(tensor, 1, left), 2, right)

    torch.testing.assert_close(wide(mixed(weights, source)), mixed(weights, wide(source)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 1}, "LiGO only grows a model: the learngene has depth 2, the spec asks for 1"),
        ({"width": 4, "heads": 1}, "LiGO only grows a model: the learngene has width 8, the spec asks for 4"),
        ({"mlp_ratio": 1.0}, "only grows a model: the learngene has MLP width 32, the spec asks for 8"),
        ({"width": 16}, "keeps the head size: the learngene's heads are 4 wide, those of the spec 8"),
        ({"patch": 1}, "LiGO cannot change the patch"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict[str, float], says: str) -> None:
    method, learngene = create_method("ligo"), learngene_of("ligo", SMALL)
    for attempt in (method.expand, method.adapter):
        with pytest.raises(UserError, match=says):
            attempt(learngene, SMALL.replace(**change))


def test_every_layer_can_have_its_own_expanders_of_attention_and_mlp() -> None:
    method, learngene = create_method("ligo:expanders=layer"), learngene_of("ligo", SMALL)
    adapter = method.adapter(learngene, LARGE)
    shapes = {name: tuple(gene.shape) for name, gene in adapter.genes().items() if name.startswith("width_scaler.")}
    assert shapes == {
        "width_scaler.stream": (12, 8),
        **{f"width_scaler.blocks.{part}": (5, 12, 8) for part in "qkv"},
        "width_scaler.blocks.hidden": (5, 48, 32),
    }
    # with equal expanders in all layers it is the shared growth
    shared = create_method("ligo").adapter(learngene, LARGE)
    with torch.no_grad():
        for name, gene in shared.genes().items():
            own = adapter.genes()
            target = own.get(name, own.get(name.replace("width_scaler.", "width_scaler.blocks.")))
            target.copy_(gene)
    for name, tensor in shared.materialise().state_dict().items():
        torch.testing.assert_close(adapter.materialise().state_dict()[name], tensor)
    loss = torch.nn.functional.cross_entropy(adapter(images_of(LARGE)), torch.tensor([0, 1]))
    loss.backward()
    assert all(parameter.grad.any() for parameter in adapter.parameters())


def test_noise_mixes_a_little_of_the_other_layers() -> None:
    adapter = create_method("ligo:noise=0.03").adapter(learngene_of("ligo", SMALL), SMALL.replace(depth=5))
    for name, gene in adapter.genes().items():
        if name.startswith("depth_scaler."):
            torch.testing.assert_close(gene.sum(1), torch.ones(5))
            assert gene.argmax(1).tolist() == [0, 1, 0, 1, 0]
            assert (gene.min(1).values > 0).all() and (gene.min(1).values < 0.03).all()
