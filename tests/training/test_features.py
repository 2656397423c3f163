"""Features of teachers of every kind, students of every method, and a run that continues bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import AugmentationConfig, DataConfig, TrainingConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.image_set import Subset
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.methods.elastic import draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.features import VECTOR, FeatureReader, feature_shapes
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS, spec_for
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.store import Store
from ray_learngene.training.batches import Batches
from ray_learngene.training.checkpoints import BackgroundCheckpoints
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.feature_scores import FeatureScorer, Probes
from ray_learngene.training.features import OWN, FeatureLoss, FeatureObjective, FeatureStudent
from ray_learngene.training.lockstep import train
from ray_learngene.training.optimizers import create_optimizer
from ray_learngene.training.trainer import Trainer
from ray_learngene.training.world import World

CPU = torch.device("cpu")
NANO = PRESETS["nano"].replace(depth=4, classes=0)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TEACHERS: dict[str, dict[str, Any]] = {
    "deit_tiny_distilled_patch16_224": SMALL,  # two tokens
    "vit_small_patch14_reg4_dinov2": SMALL,  # registers, no head
    "vit_base_patch16_siglip_224": SMALL,  # attention pooling
    "vit_small_patch16_dinov3": SMALL,  # rotary positions
    "beit_base_patch16_224": SMALL,
    "swin_tiny_patch4_window7_224": {"img_size": 32, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2)},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_resnet": {},
    "hiera_tiny_224": {
        "img_size": 64,
        "embed_dim": 16,
        "num_heads": 1,
        "stages": (1, 1, 2, 1),
    },  # its maps have no norm
}


def teacher(name: str = "vit_small_patch14_reg4_dinov2") -> Ancestry:
    torch.manual_seed(7)
    return Ancestry(timm.create_model(name, num_classes=0, **TEACHERS[name]))


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_of_any_family_gives_maps_and_a_vector(name: str) -> None:
    ancestry = teacher(name)
    images = torch.randn(2, 3, *ancestry.input_size)
    with torch.no_grad():
        features = ancestry(images, FeatureReader(2))
        assert torch.equal(features[VECTOR], ancestry.model(images))  # what timm's model without a head returns
        last = ancestry(images, FeatureReader())["map0"]
        assert torch.equal(features["map1"], last) and last.ndim == 4
        assert features["map0"].shape[1] <= last.shape[1] and features["map0"].shape[2] >= last.shape[2]
        smaller = ancestry(F.interpolate(images, (24, 24)), FeatureReader())  # resized to its own input size
    assert smaller["map0"].shape == last.shape


def test_the_loss_is_zero_at_the_teachers_standardised_features_alone() -> None:
    taught = {VECTOR: 3 + torch.randn(4, 16), "map0": 5 * torch.randn(4, 16, 6, 6)}
    same = {
        VECTOR: F.layer_norm(taught[VECTOR], (16,)),
        "map0": F.layer_norm(taught["map0"].movedim(1, -1), (16,)).movedim(-1, 1),
    }
    for kind in ("cosine", "smooth-l1", "mse", "cosine+smooth-l1"):
        loss = FeatureLoss(kind, vector=0.5)  # type: ignore[arg-type]
        assert loss(same, taught)["loss"].item() == pytest.approx(0, abs=1e-5)
        other = loss({name: each + torch.randn_like(each) for name, each in same.items()}, taught)
        assert other["loss"] == other["map_loss"] + 0.5 * other["vector_loss"] > 0.1
    both = FeatureLoss()({**same, VECTOR: -same[VECTOR]}, taught)
    parts = [FeatureLoss(kind)({**same, VECTOR: -same[VECTOR]}, taught) for kind in ("cosine", "smooth-l1")]  # type: ignore[arg-type]
    assert both["vector_loss"] == sum(part["vector_loss"] for part in parts)


def test_a_students_map_is_resized_to_the_teachers_grid() -> None:
    values = torch.linspace(0, 1, 16).view(1, 1, 1, 16).expand(1, 8, 4, 16)
    taught = {VECTOR: torch.randn(1, 8), "map0": torch.randn(1, 8, 8, 32)}
    coarse, fine = ({VECTOR: taught[VECTOR], "map0": values}, {VECTOR: taught[VECTOR]})
    fine["map0"] = F.interpolate(values, (8, 32), mode="bilinear")
    assert torch.equal(FeatureLoss()(coarse, taught)["map_loss"], FeatureLoss()(fine, taught)["map_loss"])


METHODS = ("sws:stages=2-2", "any-size:widths=16-32", "wave", "tleg", "share-init", "supernet", "pretrained", "heur-lg")


def student(method: str, ancestry: Ancestry, layers: int = 1) -> FeatureStudent:
    reader = FeatureReader(layers)
    shapes = feature_shapes(ancestry, lambda model, images: model(images, reader), torch.zeros(1, 3, 8, 8))
    torch.manual_seed(0)
    return FeatureStudent(create_method(method).auxiliary(NANO, drop_path=0.1), reader, shapes, ImageShape(3, 8, 8))


STUDENTS: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {**TEACHERS["swin_tiny_patch4_window7_224"], "depths": (2, 2)},
    "convnext_atto": {"dims": (8, 16, 16, 16), "depths": (1, 1, 2, 1)},
    "vit_small_patch16_dinov3": SMALL,
    "deit_tiny_patch16_224": SMALL,  # a class token
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_any_family_learns_the_features_of_any_other(name: str) -> None:
    ancestry, reader = teacher(), FeatureReader(2)
    spec = spec_for(name, classes=0, **STUDENTS[name])
    shapes = feature_shapes(ancestry, lambda model, images: model(images, reader), torch.zeros(1, 3, 32, 32))
    model = FeatureStudent(create_method("sws").auxiliary(spec), reader, shapes, ImageShape(3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    FeatureObjective(ancestry, reader, FeatureLoss())(
        TorchEngine(model, torch.optim.SGD(model.parameters())), images, images
    )["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    expanded = create_method("sws").expand(create_method("sws").extract(model.student), spec).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images)[OWN], expanded(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_features_and_keeps_no_projector(method: str, tmp_path: Path) -> None:
    ancestry = teacher()
    model = student(method, ancestry, layers=2)
    optimizer = create_optimizer(model, TrainingConfig(epochs=1, batch_size=512, lr=1e-2, warmup_epochs=0))
    engine, objective = TorchEngine(model, optimizer), FeatureObjective(ancestry, FeatureReader(2), FeatureLoss())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decayed = {parameter for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]}
    images, losses = torch.randn(8, 3, 8, 8), []
    for step in range(6):
        draw_step(model, 0, step, 6)
        terms = objective(engine, images, torch.zeros(8))
        engine.backward(terms["loss"])
        engine.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert not (name.endswith("pos_embed") and parameter in decayed)
    made = create_method(method)
    learngene = made.extract(model.student)
    assert learngene.spec.classes == 0
    assert not any("head" in name or "projector" in name for name in learngene.tensors)
    descendant = made.expand(learngene, learngene.spec.replace(classes=3), seed=1)
    features = made.expand(learngene, learngene.spec).eval()
    assert descendant.head.out_features == 3 and features.num_classes == 0  # type: ignore[union-attr, operator]
    if method == "heur-lg":  # it keeps some blocks of a trained model
        return
    with torch.no_grad():
        given = model.eval()(images)
        torch.testing.assert_close(given[OWN], features(images), rtol=1e-4, atol=1e-5)
        expected = FeatureReader(2)(features, images)
        for name in ("map0", "map1"):
            torch.testing.assert_close(given[name], model.projectors[name](expected[name]), rtol=1e-4, atol=1e-4)


def digits(augmentation: AugmentationConfig) -> ImagePipeline:
    sets = open_image_sets(DataConfig(data="digits"))
    preprocessing = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")
    return ImagePipeline(
        Subset(sets.train, np.arange(100)), Subset(sets.val, np.arange(40)), preprocessing, augmentation
    )


class Interrupted(Exception):
    pass


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=2, batch_size=32, lr=1e-2, warmup_epochs=0.5, drop_path=0.2, ema=0.9)
    images, ancestry = digits(AugmentationConfig(mixup=0.8, reprob=0.2, scale=(0.7, 1.0))), teacher()

    def run(name: str, stop_at: int | None = None) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        model = student("sws:stages=2-2", ancestry)
        optimizer = create_optimizer(model, config)

        def due(step: int, steps_per_epoch: int, seconds: float) -> bool:
            if stop_at is not None and step == stop_at + 1:
                raise Interrupted
            return step == stop_at

        objective = FeatureObjective(ancestry, FeatureReader(), FeatureLoss())
        bank = [(torch.stack([torch.full((3, 8, 8), float(label)) for label in (0, 1, 2)]), torch.tensor([0, 1, 2]))]
        trainer = Trainer(
            TorchEngine(model, optimizer, clip_grad=1.0),
            optimizer,
            objective,
            images,
            config,
            world=World(CPU),
            checkpoints=BackgroundCheckpoints(StoreCheckpoints(Store(str(tmp_path)), f"{name}/state")),
            checkpoint_due=due,
            report=lambda metrics: None,
            scorer=FeatureScorer(objective, CPU, None, bank, 10),
        )
        train([trainer], Batches(images, config, trainer.world))
        assert trainer.ema is not None
        averages = {f"ema.{key}": tensor for key, tensor in trainer.ema.module.state_dict().items()}
        return {**model.state_dict(), **averages}, trainer.progress.history

    undisturbed, history = run("undisturbed")
    with pytest.raises(Interrupted):
        run("interrupted", stop_at=4)
    resumed, again = run("interrupted")
    assert undisturbed.keys() == resumed.keys() and any("projectors" in name for name in resumed)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in undisturbed.items())
    scores = ("knn", "linear", "ema_knn", "ema_linear", "val_loss")
    assert [history[-1][name] for name in scores] == [again[-1][name] for name in scores]
    assert "top1" not in history[-1]


def test_the_probes_find_classes_that_vectors_tell_apart() -> None:
    torch.manual_seed(0)
    centres = 4 * torch.randn(3, 8)
    labels = torch.arange(90) % 3
    vectors = centres[labels] + torch.randn(90, 8)
    probes = Probes(vectors[:60], labels[:60], classes=4)
    for classify in (probes.knn, probes.linear):
        assert (classify(vectors[60:]) == labels[60:]).float().mean() > 0.95
    shuffled = Probes(vectors[:60], labels[:60][torch.randperm(60)], classes=4)
    assert (shuffled.linear(vectors[60:]) == labels[60:]).float().mean() < 0.7
