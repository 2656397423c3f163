"""`distill --untied-epochs`: shared blocks, then a block of its own for every layer, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_learngene.config import AncestryConfig, DistillConfig, load_config
from ray_learngene.distillation.calibration import plan_distillation
from ray_learngene.distillation.distill import distill
from ray_learngene.distillation.phases import phases
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.errors import UserError
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store

QUICK: dict[str, Any] = {
    **{"data": "digits", "batch_size": 512, "warmup_epochs": 0, "drop_path": 0.0, "workers": 0, "epochs": 1},
    **{"train_share": 0.5, "val_share": 0.2},
}
SHARED = {"method": "any-size:shallowest=1:stages=2:growth=1", "soft_labels": True, "view_epochs": 1}
UNTIED = {"method": "any-size:shallowest=1:stages=2:growth=0:untied=true", "alpha": 0.5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("untied") / "store")
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 1}
    train_ancestry(AncestryConfig(**QUICK, name="vit", store=uri, model="deit_tiny_patch16_224", model_args=size))
    return uri


def distillation(store: str, **changes: Any) -> DistillConfig:
    given = {"store": store, "ancestry": "store:ancestries/vit", "preset": "nano", "depth": 3, "width": 32}
    return DistillConfig(**{**QUICK, **given, **changes})


def both(store: str, name: str, **changes: Any) -> DistillConfig:
    given = {**SHARED, "method": "any-size:shallowest=1:stages=2", "untied_epochs": 2, **changes}
    return distillation(store, name=name, **given)


def test_it_is_what_two_commands_make_and_goes_on_after_the_first(store: str) -> None:
    distill(distillation(store, name="apart", **SHARED))
    distill(distillation(store, name="apart-untied", start="apart", **{**SHARED, **UNTIED, "epochs": 2}))
    first = distill(distillation(store, name="once-shared", **SHARED))  # a command that stopped between the two
    made = distill(both(store, "once"))
    assert Store(store).manifest("learngene", "once-shared").version == first.version
    one, other = (StoredLearngene.load(Store(store), name) for name in ("apart-untied", "once"))
    assert all(torch.equal(x, other.learngene.tensors[name]) for name, x in one.learngene.tensors.items())
    assert other.learngene.description() == one.learngene.description()
    spent = (Store(store).manifest("learngene", "once-shared"), made)
    assert other.facts()["learngene_flops"] == sum(part.metadata["cost"]["flops"] for part in spent)
    assert distill(both(store, "once")).version == made.version  # nothing to do
    with pytest.raises(UserError, match="'once' is already in .*, made with other settings"):
        distill(both(store, "once", untied_epochs=3))


def test_labels_alone_and_the_ancestry_model_alone(store: str) -> None:
    config = both(store, "labels", alpha=0, ancestry=None, soft_labels=False, view_epochs=0)
    assert distill(config).metadata["cost"]["teacher_flops"] == 0
    taught = distill(both(store, "taught", labels=False))
    assert taught.metadata["config"]["alpha"] == 1


def test_without_the_first_learngene_the_second_is_not_made_again(store: str, tmp_path: Path) -> None:
    distill(distillation(store, name="lost", **SHARED))
    with pytest.raises(UserError, match="'lost' is already in .*, but not 'lost-shared', where --untied-epochs begins"):
        distill(both(store, "lost"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "sws"}, "untied_epochs is for any-size, not for sws"),
        ({"teach": "features", "alpha": 1}, "untied_epochs needs logits or labels"),
        ({"untied_epochs": -1}, "--untied-epochs: input should be greater"),
    ],
)
def test_what_cannot_be_untied_is_a_mistake_of_the_configuration(changes: dict[str, Any], says: str) -> None:
    given = {"name": "n", "data": "digits", "preset": "nano", "ancestry": "local-dir:a", "untied_epochs": 1, **changes}
    with pytest.raises(UserError, match=says):
        load_config(DistillConfig, given)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("untied=true", "--untied-epochs unties its layers: leave untied out"),
        ("corrections=0.1", "untied layers need no corrections"),
        ("depth=3", "is not an option"),
    ],
)
def test_options_that_cannot_be_untied_are_refused_before_anything_is_trained(
    store: str, options: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        distill(both(store, "no", method=f"any-size:{options}"))
    assert not Store(store).exists("learngene", "no-shared")


def test_each_part_has_a_warm_up_of_its_own(store: str) -> None:
    short = {"name": "n", "data": "digits", "ancestry": "local-dir:a", "preset": "nano", "epochs": 2}
    first, second = phases(DistillConfig(**short, untied_epochs=40))
    assert (first.warmup_epochs, second.warmup_epochs) == (1, DistillConfig.model_fields["warmup_epochs"].default)
    with pytest.raises(UserError, match="warmup_epochs 2 leaves nothing of 1 epoch"):
        distill(both(store, "no", epochs=4, untied_epochs=1, warmup_epochs=2))
    assert not Store(store).exists("learngene", "no-shared")


def test_a_plan_counts_both(store: str) -> None:
    config = both(store, "planned")
    cost, planned = plan_distillation(config)
    assert cost.learngene == "planned" and cost.seconds > 0
    steps = {"steps": 3, "images": 3 * config.batch_size}
    assert {name: planned.manifest.metadata["cost"][name] for name in steps} == steps
    assert planned.learngene.options["untied"]
