"""The training step: accumulation, clipping, schedule, the guard against non-finite losses, and exact resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ray_learngene import errors
from ray_learngene.config import AugmentationConfig, DataConfig, TrainingConfig
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import build
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.checkpoints import StoreCheckpoints
from ray_learngene.store.store import Store
from ray_learngene.training.batches import Batches
from ray_learngene.training.checkpoints import BackgroundCheckpoints
from ray_learngene.training.engine import TorchEngine
from ray_learngene.training.evaluation import evaluate
from ray_learngene.training.finite_guard import FiniteGuard, NonFiniteLoss
from ray_learngene.training.lockstep import train
from ray_learngene.training.objectives import DistillationLoss, DistillationObjective, LabelObjective
from ray_learngene.training.optimizers import create_optimizer, create_schedule, learning_rate
from ray_learngene.training.step import Stepper
from ray_learngene.training.trainer import Trainer
from ray_learngene.training.world import World

CPU = torch.device("cpu")
NANO = PRESETS["nano"].replace(depth=3)
CONFIG = TrainingConfig(epochs=2, batch_size=64, lr=4e-3, warmup_epochs=0.5, seed=3)


def batch(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 10


def one_step(
    model: nn.Module, micro_batches: list[tuple[torch.Tensor, torch.Tensor]], clip_grad: float = 0.0
) -> nn.Module:
    # plain SGD, so that the weights show the gradient itself
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = TorchEngine(model, optimizer, accumulation=len(micro_batches), clip_grad=clip_grad)
    stepper = Stepper(engine, LabelObjective(), optimizer, None, 1, CPU, FiniteGuard(CPU))
    assert stepper(0, micro_batches).number == 1
    return model


def test_accumulated_micro_batches_are_one_batch() -> None:
    images, labels = batch()
    whole = one_step(build(NANO, seed=0), [(images, labels)])
    parts = one_step(build(NANO, seed=0), [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 16, 4)])
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_bf16_changes_a_gradient_by_its_rounding_alone() -> None:
    images, labels = batch(64)

    def gradient(autocast: torch.dtype | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = create_method("sws:stages=1-2-1").auxiliary(NANO.replace(depth=4))
        engine = TorchEngine(model, torch.optim.SGD(model.parameters()), autocast=autocast)
        engine.backward(LabelObjective()(engine, images, labels)["loss"])
        return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])

    exact = gradient(None)
    error = (gradient(torch.bfloat16) - exact).norm() / exact.norm()
    assert 0 < error < 4 * torch.finfo(torch.bfloat16).eps


def test_clipping_bounds_the_step() -> None:
    before = build(NANO, seed=0)
    after = one_step(build(NANO, seed=0), [batch()], clip_grad=1e-3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before.parameters(), after.parameters(), strict=True)]).norm()
    assert moved.item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_schedule_warms_up_and_ends_at_the_minimum() -> None:
    optimizer = create_optimizer(build(NANO), CONFIG)
    schedule = create_schedule(optimizer, CONFIG, steps_per_epoch=20)
    rates = []
    for step in range(41):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(CONFIG.warmup_lr)
    assert max(rates) <= learning_rate(CONFIG) == pytest.approx(CONFIG.lr * 64 / 512)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(CONFIG.min_lr)


def test_no_weight_decay_on_biases_norms_and_position_embedding() -> None:
    model = build(NANO)
    groups = create_optimizer(model, CONFIG).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    free = {names[parameter] for group in groups if not group["weight_decay"] for parameter in group["params"]}
    assert {"pos_embed", "blocks.0.norm1.weight", "head.bias"} <= free
    assert not any(name.endswith("mlp.fc1.weight") for name in free)


def test_a_non_finite_loss_stops_before_the_weights_change() -> None:
    images, labels = batch()
    model = build(NANO, seed=0)
    reference = build(NANO, seed=0)
    with pytest.raises(NonFiniteLoss, match=r"not finite at or before step 1 .* lower --lr"):
        one_step(model, [(images * float("nan"), labels)])
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_guard_of_one_worker_stops_all() -> None:
    def another_worker_saw_nan(flag: torch.Tensor) -> None:
        flag += 1

    guard = FiniteGuard(CPU, another_worker_saw_nan)
    guard.watch({"loss": torch.tensor(1.0)}, 7, 1e-3)
    with pytest.raises(NonFiniteLoss, match="before step 8"):
        guard.check(8, 1e-3)


@pytest.mark.parametrize(("steps", "told_at"), [(1, 4), (6, 6), (50, 22)])
def test_workers_look_for_a_non_finite_loss_as_often_as_asked(tmp_path: Path, steps: int, told_at: int) -> None:
    class Broken(LabelObjective):
        """NaN from the fourth step on."""

        calls = 0

        def __call__(self, *batch: Any) -> dict[str, torch.Tensor]:
            self.calls += 1
            losses = super().__call__(*batch)
            return {"loss": losses["loss"] * (float("nan") if self.calls > 3 else 1.0)}

    images, model = digits(AugmentationConfig()), build(NANO, seed=0)
    config = CONFIG.model_copy(update={"loss_check_steps": steps})
    optimizer = create_optimizer(model, config)
    trainer = Trainer(
        TorchEngine(model, optimizer),
        optimizer,
        Broken(),
        images,
        config,
        world=World(CPU, world_size=2),  # the other's losses are never NaN
        checkpoints=BackgroundCheckpoints(StoreCheckpoints(Store(str(tmp_path)), "a/state")),
        checkpoint_due=lambda step, steps_per_epoch, seconds: False,
        report=lambda metrics: None,
    )
    with pytest.raises(NonFiniteLoss, match=f"before step {told_at} "):
        train([trainer], Batches(images, config, trainer.world))


def test_the_ancestry_is_frozen_and_sees_the_students_images() -> None:
    seen: list[torch.Tensor] = []

    class Teacher(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            assert not self.training
            return super().forward(images.flatten(1))

    teacher, student = Teacher(192, 10), build(NANO)
    images, labels = batch()
    engine = TorchEngine(student, torch.optim.SGD(student.parameters(), lr=0.1))
    loss = DistillationObjective(teacher.train(), DistillationLoss(alpha=0.5))(engine, images, labels)["loss"]
    engine.backward(loss)
    assert seen[0] is images
    assert teacher.weight.grad is None
    assert student.patch_embed.proj.weight.grad is not None


def test_evaluation_counts_every_image_once() -> None:
    model = build(NANO, seed=0)
    images, labels = batch(10)
    scores = evaluate(model, [(images[:7], labels[:7]), (images[7:], labels[7:])], device=CPU)
    logits = model.eval()(images)
    assert scores.images == 10
    assert scores.top1 == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())
    assert scores.mean_loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


class Interrupted(Exception):
    pass


def digits(augmentation: AugmentationConfig) -> ImagePipeline:
    sets = open_image_sets(DataConfig(data="digits"))
    mean = std = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(image_size=8, mean=mean, std=std, crop_pct=1.0, interpolation="bicubic")
    return ImagePipeline(sets.train, sets.val, preprocessing, augmentation)


def test_a_run_that_is_stopped_before_its_first_step_writes_nothing(tmp_path: Path) -> None:
    """ZeRO has no moments to write then, and nothing would be lost."""
    store, model = Store(str(tmp_path)), create_method("scratch").expand(None, NANO)
    optimizer = create_optimizer(model, CONFIG)
    trainer = Trainer(
        TorchEngine(model, optimizer),
        optimizer,
        LabelObjective(),
        images := digits(AugmentationConfig()),
        CONFIG,
        world=World(CPU),
        checkpoints=BackgroundCheckpoints(StoreCheckpoints(store, "stopped/state")),
        checkpoint_due=lambda step, steps_per_epoch, seconds: True,
        report=lambda metrics: None,
    )
    with pytest.raises(errors.Interrupted) as stopped:
        train([trainer], Batches(images, CONFIG, trainer.world), stop=lambda step: True)
    assert stopped.value.done == 0 < stopped.value.total == trainer.total_steps
    assert not store.exists("checkpoint", "stopped/state")


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"drop_path": 0.2, "ema": 0.9})
    images = digits(AugmentationConfig(mixup=0.8, cutmix=1.0, reprob=0.2, repeats=2, scale=(0.7, 1.0)))

    def run(name: str, stop_at: int | None = None) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        model = create_method("sws:stages=1-2-1").auxiliary(NANO, drop_path=config.drop_path)
        optimizer = create_optimizer(model, config)
        checkpoints = BackgroundCheckpoints(StoreCheckpoints(Store(str(tmp_path)), f"{name}/state"))

        def due(step: int, steps_per_epoch: int, seconds: float) -> bool:
            if stop_at is not None and step == stop_at + 1:
                raise Interrupted
            return step % 5 == 0 or step == stop_at

        trainer = Trainer(
            TorchEngine(model, optimizer, clip_grad=1.0),
            optimizer,
            LabelObjective(),
            images,
            config,
            world=World(CPU),
            checkpoints=checkpoints,
            checkpoint_due=due,
            report=lambda metrics: None,
        )
        train([trainer], Batches(images, config, trainer.world))
        assert trainer.ema is not None
        return model, trainer.ema.module, trainer.progress.history[-1]

    undisturbed = run("undisturbed")
    for stop_at in (5, 22, 31):  # in the first epoch, at its end, and in the second
        with pytest.raises(Interrupted):
            run(f"interrupted-{stop_at}", stop_at=stop_at)
        resumed = run(f"interrupted-{stop_at}")
        for one, other in zip(undisturbed[:2], resumed[:2], strict=True):
            for name, tensor in one.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name]), f"{name}, stopped at step {stop_at}"
        assert undisturbed[2]["top1"] == resumed[2]["top1"]


def test_a_step_that_failed_between_its_micro_batches_leaves_none_to_the_next_step() -> None:
    config = CONFIG.model_copy(update={"accumulation": 2})
    broken, whole = (Batches(digits(AugmentationConfig()), config, World(CPU)) for _ in range(2))
    next(broken.of_step(0))  # the only model that takes this step fails; another takes the next one
    seen, expected = ([images for images, _ in batches.of_step(1)] for batches in (broken, whole))
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


def test_workers_share_the_statistics_of_the_average_of_weights_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.BatchNorm1d(10))
    images, config = digits(AugmentationConfig()), CONFIG.model_copy(update={"epochs": 1, "ema": 0.5})

    def total(tensor: torch.Tensor) -> None:
        """Add what another worker has: the same, but for statistics that are larger by 200."""
        tensor *= 2
        tensor += 200 * (tensor.shape == (10,))

    optimizer = create_optimizer(model, config)
    trainer = Trainer(
        TorchEngine(model, optimizer),
        optimizer,
        LabelObjective(),
        images,
        config,
        world=World(CPU, world_size=2, all_reduce=total),
        checkpoints=BackgroundCheckpoints(StoreCheckpoints(Store(str(tmp_path)), "a/state")),
        checkpoint_due=lambda step, steps_per_epoch, seconds: False,
        report=lambda metrics: None,
    )
    batches = Batches(images, config, trainer.world)
    for step in range(trainer.steps_per_epoch):
        trainer.take_step(batches.of_step(step))
    assert trainer.score_due and trainer.ema is not None
    for module in (model, trainer.ema.module):
        assert bool((module[2].running_mean > 90).all())  # type: ignore[index]
