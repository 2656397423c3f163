"""timm's optimizers by name: the default as it was, layer decay, exact continuation, and what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from ray_learngene.config import DistillConfig, OptimizationConfig, SweepConfig, load_config
from ray_learngene.config.decides import DESCENDANT, RUN, decisive
from ray_learngene.distillation.task import open_store
from ray_learngene.errors import UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.specs import PRESETS
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.fitting import ADAMW
from ray_learngene.training.optimizers import (
    ADAMW_TRAITS,
    create_optimizer,
    create_schedule,
    current_rate,
    learning_rate,
    traits_of,
)

NANO = PRESETS["nano"].replace(depth=2)
CONFIG = OptimizationConfig(epochs=1, batch_size=64, lr=1e-2, warmup_epochs=0)


def changed(**changes: Any) -> OptimizationConfig:
    return OptimizationConfig(**{**CONFIG.model_dump(), **changes})


@pytest.mark.parametrize("method", ["sws:stages=1-1", "wave", "pretrained"])
def test_the_default_is_fused_adamw_with_timms_groups(method: str) -> None:
    module = create_method(method).auxiliary(NANO)
    made = create_optimizer(module, CONFIG)
    expected = create_optimizer_v2(
        module, opt="adamw", lr=learning_rate(CONFIG), weight_decay=CONFIG.weight_decay, fused=True
    )
    assert type(made) is type(expected) is torch.optim.AdamW
    assert repr(made.param_groups) == repr(expected.param_groups)


def test_the_default_leaves_names_and_fingerprints_as_they_were() -> None:
    run = DistillConfig(name="a", data="digits", ancestry="b", preset="nano", **ADAMW)
    sweep = SweepConfig(name="a", data="digits", learngene="b", **ADAMW)
    assert not ADAMW.keys() & (decisive(run, RUN).keys() | decisive(sweep, DESCENDANT).keys())
    assert "opt" in decisive(run.model_copy(update={"opt": "lion"}), RUN)


NAMES = ("adamw", "lion", "lamb", "sgd", "muon", "adan", "nadamw", "adafactorbv", "madgrad", "lookahead_radam")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_continues_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = changed(opt=name)

    def engine() -> tuple[TorchEngine, Any]:
        module = build(NANO, seed=0)
        optimizer = create_optimizer(module, config)
        return TorchEngine(module, optimizer, clip_grad=1.0), create_schedule(optimizer, config, 12)

    def train(engine: TorchEngine, schedule: Any, steps: range) -> None:
        for step in steps:
            schedule.step_update(step)
            torch.manual_seed(step)
            engine.backward(engine(torch.randn(8, 3, 8, 8)).square().mean())
            engine.step()

    undisturbed, schedule = engine()
    train(undisturbed, schedule, range(7))
    undisturbed.save(tmp_path)
    train(undisturbed, schedule, range(7, 10))
    resumed, schedule = engine()
    resumed.load(tmp_path)
    train(resumed, schedule, range(7, 10))
    start = build(NANO, seed=0).state_dict()
    for key, tensor in undisturbed.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[key]), key
        assert not torch.equal(tensor, start[key]), key


@pytest.mark.parametrize("name", ["adamw", "lion", "adan", "lookahead_adamw", "lamb", "larc", "muon", "adafactor"])
def test_zero_may_split_what_looks_at_single_elements_alone(name: str) -> None:
    traits = traits_of(changed(opt=name))
    assert traits.elementwise is (name in ("adamw", "lion"))
    assert traits.moments == {"lion": 1, "adan": 4, "lookahead_adamw": 3, "adafactor": 0.06, "larc": 1, "muon": 1}.get(
        name, 2
    )
    assert traits_of(CONFIG) == ADAMW_TRAITS


def test_layer_decay_lowers_the_rate_of_early_layers_at_every_step() -> None:
    model, config = build(NANO), changed(layer_decay=0.5, warmup_epochs=0.5)
    optimizer = create_optimizer(model, config)
    schedule = create_schedule(optimizer, config, 10)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for step in (0, 3, 9):
        assert schedule is not None
        schedule.step_update(step)
        share = {
            names[parameter]: group["lr"] / current_rate(optimizer)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        assert share["pos_embed"] == pytest.approx(0.125)
        assert share["blocks.0.attn.qkv.weight"] == pytest.approx(0.25)
        assert share["blocks.1.norm1.bias"] == pytest.approx(0.5)
        assert share["head.weight"] == pytest.approx(1)
    decayed = {names[each]: group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert decayed["pos_embed"] == 0 and decayed["blocks.0.attn.qkv.weight"] == CONFIG.weight_decay


@pytest.mark.parametrize("name", ["convnext_atto", "swin_s3_tiny_224", "eva02_tiny_patch14_224", "levit_128s"])
def test_layer_decay_knows_the_layers_of_every_family(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    groups = create_optimizer(model, changed(layer_decay=0.9)).param_groups
    assert len({group["lr_scale"] for group in groups}) > 3
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"opt": "adamv"}, "--opt adamv: timm has no such optimizer; did you mean adam"),
        ({"opt": "adahessian"}, "--opt adahessian: it needs second derivatives"),
        ({"opt": "fusedadam"}, "--opt fusedadam: "),
        ({"opt_args": {"beta": 1}}, '--opt adamw --opt-args {"beta": 1}: .*beta'),
        ({"opt_args": {"betas": [2, 3]}}, "--opt adamw --opt-args .*: Invalid beta"),
    ],
)
def test_what_does_not_work_is_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        traits_of(changed(**settings))
    assert "\n" not in str(caught.value)


def test_settings_that_have_a_flag_are_no_arguments() -> None:
    with pytest.raises(UserError, match="--opt-args: weight_decay is a flag of its own: leave it out"):
        load_config(OptimizationConfig, {"opt_args": {"weight_decay": 1}})


@pytest.mark.parametrize(("method", "kind"), [("wave", "Generated"), ("sws", "StageShared")])
def test_layers_that_share_parameters_have_no_layer_decay(method: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"--layer-decay 0\.5: the layers of this {kind}VisionTransformer share"):
        create_optimizer(create_method(method).auxiliary(NANO), changed(layer_decay=0.5))


def test_an_optimizer_that_needs_whole_parameters_is_refused_with_zero(tmp_path: Path) -> None:
    settings = {"name": "a", "data": "digits", "ancestry": "b", "preset": "nano", "store": str(tmp_path)}
    open_store(DistillConfig(**settings, opt="lamb"), "learngene")
    with pytest.raises(UserError, match="--opt lamb: its step needs whole parameters, ZeRO splits them: use --zero 0"):
        open_store(DistillConfig(**settings, opt="lamb", zero=1), "learngene")
