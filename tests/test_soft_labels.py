"""Soft labels: what is kept of an answer, when it is used, and that training from it is the online training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from torch import Tensor, nn

from ray_learngene import cli
from ray_learngene.ancestry import Ancestry
from ray_learngene.background_checkpoints import BackgroundCheckpoints
from ray_learngene.checkpoints import StoreCheckpoints
from ray_learngene.config import AugmentationConfig, DataConfig, DistillationConfig, OptimizationConfig
from ray_learngene.data import open_image_sets
from ray_learngene.data.image_set import Subset
from ray_learngene.data.images import Images, Preprocessing
from ray_learngene.engine import DistillationObjective, TorchEngine, create_optimizer
from ray_learngene.errors import UserError
from ray_learngene.export import export_timm
from ray_learngene.losses import DistillationLoss
from ray_learngene.methods import Learngene, create_method
from ray_learngene.soft_labels.answers import Answers
from ray_learngene.soft_labels.cache import FILE, facts_of, from_table, part_names, to_table, write_table
from ray_learngene.soft_labels.kept import SoftLabels
from ray_learngene.specs import PRESETS
from ray_learngene.store import Store
from ray_learngene.training import train
from ray_learngene.worker import Worker

CPU = torch.device("cpu")
STRONG = AugmentationConfig(mixup=0.8, cutmix=1.0, reprob=0.25, repeats=2, scale=(0.7, 1.0))
CONFIG = OptimizationConfig(epochs=3, batch_size=32, lr=4e-3, warmup_epochs=0.5, drop_path=0.2, seed=3, ema=0.9)
EXACT = DistillationConfig(soft_labels=True, soft_labels_dtype="float32")
STEPS = 4


def some_images(augmentation: AugmentationConfig = STRONG) -> Images:
    sets = open_image_sets(DataConfig(data="digits"))
    statistics = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(image_size=8, mean=statistics, std=statistics, crop_pct=1.0, interpolation="bicubic")
    train_set, val = Subset(sets.train, np.arange(32 * STEPS + 5)), Subset(sets.val, np.arange(20))
    return Images(train_set, val, preprocessing, augmentation)


@pytest.fixture(scope="module")
def images() -> Images:
    return some_images()


def vision_transformer() -> nn.Module:
    torch.manual_seed(5)
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = timm.create_model("deit_tiny_patch16_224", **size, num_classes=10, class_token=False, global_pool="avg")
    nn.init.normal_(model.head.weight, std=2)  # decided answers
    return model


@pytest.fixture(scope="module")
def ancestry() -> Ancestry:
    return Ancestry(vision_transformer())


@pytest.fixture(scope="module")
def logits(ancestry: Ancestry, images: Images) -> Tensor:
    with torch.no_grad():
        return torch.cat([ancestry(batch) for batch, _ in images.training_batches(CONFIG)])


def test_all_classes_in_float32_are_the_logits_themselves(logits: Tensor) -> None:
    assert torch.equal(SoftLabels.of(logits, 16, "float32").logits(), logits)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_probabilities_are_within_the_stated_bound(logits: Tensor, k: int, dtype: Any) -> None:
    kept = SoftLabels.of(logits, k, dtype).logits()
    true, read = logits.double().softmax(-1), kept.double().softmax(-1)
    lost = 1 - true.topk(k).values.sum(-1)
    bound = lost + (np.log(10) / 2048 if dtype == "float16" else 0) + 1e-6
    assert ((true - read).abs().sum(-1) / 2 <= bound).all()
    assert torch.equal(kept.argmax(-1), logits.argmax(-1)), "hard distillation sees the same decisions"
    kept_mass = read.gather(1, true.topk(k).indices).sum(-1)
    torch.testing.assert_close(kept_mass, 1 - lost, atol=2e-3, rtol=0)


def test_the_mean_is_kept_where_a_single_logit_is_not() -> None:
    logits = torch.tensor([[3.0, 1.0, -1.0, -1.0]])
    assert torch.allclose(SoftLabels.of(logits, 2, "float32").logits(), logits), "equal logits are spread as they were"
    assert torch.isfinite(SoftLabels.of(torch.tensor([[0.0, -1e9]]), 2, "float16").logits()).all()


@pytest.mark.parametrize(("k", "dtype"), [(4, "float16"), (4, "float32"), (10, "float16"), (10, "float32")])
def test_parquet_keeps_every_bit(tmp_path: Path, logits: Tensor, k: int, dtype: Any) -> None:
    labels = SoftLabels.of(logits, k, dtype)
    views = np.random.default_rng(0).permutation(len(labels))
    write_table(to_table(views, labels), tmp_path / FILE)
    numbers, read = from_table(pyarrow.parquet.read_table(tmp_path / FILE), 10)
    assert np.array_equal(numbers, views)
    for name in ("values", "classes", "rest"):
        before, after = getattr(labels, name), getattr(read, name)
        assert (before is None and after is None) or (torch.equal(before, after) and before.dtype == after.dtype)


def answers_of(
    folder: Path, images: Images, ancestry: Ancestry, config: OptimizationConfig = CONFIG, **changes: Any
) -> Answers:
    teaching = EXACT.model_copy(update=changes)
    return Answers.create(config, teaching, images, ancestry, Store(str(folder)), CPU, None)


class Interrupted(Exception):
    pass


def distilled(
    folder: Path,
    images: Images,
    ancestry: Ancestry,
    answers: Answers | None,
    name: str = "run",
    stop_at: int | None = None,
    config: OptimizationConfig = CONFIG,
    loss: DistillationLoss | None = None,
) -> tuple[dict[str, Tensor], int]:
    """The weights after a run, with their average, and how many answers were read."""
    torch.manual_seed(0)
    model = create_method("sws:stages=1-1").auxiliary(PRESETS["nano"].replace(depth=2), drop_path=config.drop_path)
    optimizer = create_optimizer(model, config)

    def due(step: int, steps_per_epoch: int, seconds: float) -> bool:
        if stop_at is not None and step == stop_at + 1:
            raise Interrupted
        return step == stop_at

    stored = StoreCheckpoints(Store(str(folder)), f"{name}/state")
    with BackgroundCheckpoints(stored) as checkpoints:
        progress, ema = train(
            TorchEngine(model, optimizer, accumulation=config.accumulation, clip_grad=1.0),
            optimizer,
            DistillationObjective(None if answers else ancestry, loss or DistillationLoss(tau=2.0)),
            images,
            config,
            worker=Worker(CPU),
            checkpoints=checkpoints,
            checkpoint_due=due,
            report=lambda metrics: None,
            answers=answers,
        )
    assert ema is not None
    averages = {f"ema.{key}": tensor for key, tensor in ema.state_dict().items()}
    return {**model.state_dict(), **averages}, progress.answers_read


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def unasked(ancestry: Ancestry) -> Ancestry:
    """The same model, which must not be run or moved."""

    class Unasked(Ancestry):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("asked")

        def to(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("moved")

    return Unasked(ancestry.model)


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory, images: Images, ancestry: Ancestry) -> dict[str, Tensor]:
    return distilled(tmp_path_factory.mktemp("online"), images, ancestry, None)[0]


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, images: Images, ancestry: Ancestry, online: dict[str, Tensor]
) -> Path:
    """A store with all three epochs, kept by a run whose weights are those of the online one."""
    folder = tmp_path_factory.mktemp("filled")
    weights, read = distilled(folder, images, ancestry, answers_of(folder, images, ancestry))
    assert equal(weights, online) and read == 0
    return folder


def test_training_from_the_cache_is_the_online_training_bit_for_bit(
    filled: Path, images: Images, ancestry: Ancestry, online: dict[str, Tensor]
) -> None:
    answers = answers_of(filled, images, unasked(ancestry))
    weights, read = distilled(filled, images, ancestry, answers, name="reading")
    assert equal(weights, online) and read == answers.read == 3 * STEPS * 32


@pytest.mark.parametrize("stop_at", [STEPS + 2, 2 * STEPS])
def test_a_resumed_run_that_keeps_its_answers_is_the_online_training_too(
    tmp_path: Path, images: Images, ancestry: Ancestry, online: dict[str, Tensor], stop_at: int
) -> None:
    """Whether it was interrupted in an epoch, whose answers are then not kept, or just after one was."""
    with pytest.raises(Interrupted):
        distilled(tmp_path, images, ancestry, answers_of(tmp_path, images, ancestry), stop_at=stop_at)
    resumed = answers_of(tmp_path, images, ancestry)
    weights, read = distilled(tmp_path, images, ancestry, resumed)
    assert equal(weights, online) and read == 0
    epochs = {name.partition("-")[0] for name in part_names(Store(str(tmp_path)), resumed.cache.key)}
    assert epochs == ({"0000", "0002"} if stop_at % STEPS else {"0000", "0001", "0002"})
    # the next run reads what is there and keeps the epoch that was interrupted
    again = answers_of(tmp_path, images, ancestry)
    weights, read = distilled(tmp_path, images, ancestry, again, name="again")
    assert equal(weights, online) and read == len(epochs) * STEPS * 32
    assert len(part_names(Store(str(tmp_path)), again.cache.key)) == 3


def taught(
    answers: Callable[[], Answers], images: Images, config: OptimizationConfig, world_size: int, start_step: int = 0
) -> list[list[tuple[Tensor, ...]]]:
    return [
        [
            (batch, targets, labels.logits())
            for batch, targets, labels in answers().beside(
                images.training_batches(config, rank=rank, world_size=world_size, start_step=start_step)
            )
        ]
        for rank in range(world_size)
    ]


def test_two_workers_write_what_any_number_reads(tmp_path: Path, images: Images, ancestry: Ancestry) -> None:
    config = CONFIG.model_copy(update={"epochs": 2, "accumulation": 2})
    wrote = taught(lambda: answers_of(tmp_path, images, ancestry, config), images, config, world_size=2)
    for batches in wrote:
        for batch, _, logits in batches:
            with torch.no_grad():
                assert torch.equal(logits, ancestry(batch))

    def reading() -> Answers:
        return answers_of(tmp_path, images, unasked(ancestry), config)

    read = taught(reading, images, config, world_size=2)
    late = taught(reading, images, config, world_size=2, start_step=STEPS + 1)
    for rank in range(2):
        assert all(
            torch.equal(a, b)
            for one, other in zip(wrote[rank], read[rank], strict=True)
            for a, b in zip(one, other, strict=True)
        )
        tail = read[rank][2 * (STEPS + 1) :]
        assert all(
            torch.equal(a, b)
            for one, other in zip(tail, late[rank], strict=True)
            for a, b in zip(one, other, strict=True)
        )
    whole = CONFIG.model_copy(update={"epochs": 2})
    alone = taught(reading, images, whole, world_size=1)[0]
    for step in range(2 * STEPS):
        parts = [part for rank in range(2) for part in read[rank][2 * step : 2 * step + 2]]
        for index in range(3):
            assert torch.equal(alone[step][index], torch.cat([part[index] for part in parts]))


def test_an_epoch_is_there_when_all_its_parts_are(tmp_path: Path, images: Images, ancestry: Ancestry) -> None:
    config = CONFIG.model_copy(update={"epochs": 1})
    loader = images.training_batches(config, rank=1, world_size=2)
    list(answers_of(tmp_path, images, ancestry).beside(loader))
    answers = answers_of(tmp_path, images, ancestry)
    assert answers.cache.parts_of(0, STEPS * 32) is None
    list(answers.beside(images.training_batches(config, rank=0, world_size=2)))
    assert answers.read == 0 and len(answers.cache.parts_of(0, STEPS * 32) or []) == 2


def test_top_k_in_float16_stays_near(
    tmp_path: Path, images: Images, ancestry: Ancestry, online: dict[str, Tensor]
) -> None:
    """The whole run, both times: what is learned does not depend on whether an epoch was kept."""
    settings = {"soft_labels_k": 6, "soft_labels_dtype": "float16"}
    weights = [
        distilled(tmp_path, images, ancestry, answers_of(tmp_path, images, ancestry, **settings), name=name)[0]
        for name in ("writing", "reading")
    ]
    assert equal(*weights)
    moved = {name: (weights[0][name] - online[name]).abs().max() for name in online}
    assert 0 < max(moved.values()) < 0.05


def test_hard_distillation_reads_the_decision(tmp_path: Path, images: Images, ancestry: Ancestry) -> None:
    loss = DistillationLoss("hard", alpha=0.5)
    config = CONFIG.model_copy(update={"epochs": 1, "warmup_epochs": 0})
    one = distilled(tmp_path, images, ancestry, None, name="online", config=config, loss=loss)[0]
    answers = answers_of(tmp_path, images, ancestry, config, soft_labels_k=1, soft_labels_dtype="float16")
    other = distilled(tmp_path, images, ancestry, answers, name="kept", config=config, loss=loss)[0]
    assert equal(one, other)


def test_views_repeat_where_asked(tmp_path: Path, images: Images, ancestry: Ancestry) -> None:
    config = CONFIG.model_copy(update={"epochs": 5, "view_epochs": 2})
    batches = list(images.training_batches(config))
    for step in range(STEPS):
        assert torch.equal(batches[step][0], batches[2 * STEPS + step][0])
        assert not torch.equal(batches[step][0], batches[STEPS + step][0])
    answers = answers_of(tmp_path, images, ancestry, config)
    for index, (batch, _, labels) in enumerate(answers.beside(images.training_batches(config))):
        assert torch.equal(batch, batches[index][0])
        with torch.no_grad():
            assert torch.equal(labels.logits(), ancestry(batch))
    assert answers.read == 3 * STEPS * 32 and len(part_names(Store(str(tmp_path)), answers.cache.key)) == 2


def test_runs_of_other_seeds_share_the_views_of_one_seed(images: Images) -> None:
    views = CONFIG.model_copy(update={"epochs": 1, "seed": 0, "view_seed": 3})
    for (one, _), (other, _) in zip(
        images.training_batches(views), images.training_batches(views.model_copy(update={"seed": 7})), strict=True
    ):
        assert torch.equal(one, other)
    same = CONFIG.model_copy(update={"epochs": 1})
    assert torch.equal(next(iter(images.training_batches(same)))[0], next(iter(images.training_batches(views)))[0])


def test_the_key_is_that_of_everything_an_answer_depends_on(images: Images, ancestry: Ancestry) -> None:
    def facts(
        config: dict[str, Any] | None = None,
        augmentation: dict[str, Any] | None = None,
        teaching: dict[str, Any] | None = None,
        model: Ancestry = ancestry,
        precision: str = "float32",
        size: int = 8,
        train_set: Any = images.train,
    ) -> str:
        some = Images(
            train_set,
            images.val,
            images.preprocessing.model_copy(update={"image_size": size}),
            STRONG.model_copy(update=augmentation or {}),
        )
        found = facts_of(
            CONFIG.model_copy(update=config or {}), EXACT.model_copy(update=teaching or {}), some, model, precision
        )
        return json.dumps(found, sort_keys=True)

    torch.manual_seed(6)
    another = Ancestry(vision_transformer())
    nn.init.zeros_(another.model.head.bias)
    nn.init.ones_(another.model.head.weight)
    others = [
        facts(config={"seed": 4}),
        facts(config={"view_seed": 5}),
        facts(config={"batch_size": 64}),
        facts(augmentation={"repeats": 1}),
        facts(augmentation={"mixup": 0.1}),
        facts(augmentation={"interpolation": "bilinear"}),
        facts(teaching={"soft_labels_k": 3}),
        facts(teaching={"soft_labels_dtype": "float16"}),
        facts(model=another),
        facts(precision="bfloat16"),
        facts(size=16),
        facts(train_set=Subset(images.train, np.arange(100))),
    ]
    assert len({facts(), *others}) == len(others) + 1
    same = [
        facts(config={"lr": 1.0, "epochs": 9, "accumulation": 2, "view_epochs": 2}),
        facts(config={"seed": 9, "view_seed": 3}),
        facts(augmentation={"smoothing": 0.3, "crop_pct": 0.9}),
        facts(teaching={"tau": 3.0, "alpha": 0.5, "distillation": "hard", "soft_labels_k": 10}),
    ]
    assert set(same) == {facts()}
    once = {"repeats": 1}
    assert facts(augmentation=once) == facts(augmentation=once, config={"batch_size": 64}), "the order is the same"


def test_a_smaller_batch_needs_views_that_a_larger_one_dropped(tmp_path: Path, ancestry: Ancestry) -> None:
    images = some_images(AugmentationConfig(mixup=0.8))  # 133 images
    large, small = (CONFIG.model_copy(update={"epochs": 1, "batch_size": size}) for size in (60, 16))
    list(answers_of(tmp_path, images, ancestry, large).beside(images.training_batches(large)))
    first = answers_of(tmp_path, images, ancestry, small)
    list(first.beside(images.training_batches(small)))  # 128 views, and 120 are there
    assert first.read == 0
    again = answers_of(tmp_path, images, unasked(ancestry), large)
    kept = [labels.logits() for _, _, labels in again.beside(images.training_batches(large))]
    assert again.read == 120
    with torch.no_grad():
        for (batch, _), logits in zip(images.training_batches(large), kept, strict=True):
            torch.testing.assert_close(logits, ancestry(batch), atol=1e-5, rtol=1e-5)


def test_answers_that_are_not_finite_are_never_kept(tmp_path: Path, images: Images) -> None:
    broken = Ancestry(vision_transformer())
    broken.model.head.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        list(answers_of(tmp_path, images, broken).beside(images.training_batches(CONFIG)))
    assert not (tmp_path / "softlabels").exists()


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a small distillation in this process."""
    folder = tmp_path_factory.mktemp("model")
    model = vision_transformer()
    labels = tuple(str(digit) for digit in range(10))
    statistics = (0.5, 0.5, 0.5)
    export_timm(
        model,
        folder / "model",
        labels=labels,
        preprocessing=Preprocessing(
            image_size=8, mean=statistics, std=statistics, crop_pct=1.0, interpolation="bicubic"
        ),
    )
    words = f"--data digits --ancestry local-dir:{folder / 'model'} --preset nano --depth 2 --store {folder / 'store'}"
    words += " --train-share 0.1 --val-share 0.1 --batch-size 32 --epochs 2 --warmup-epochs 0 --workers 0 --soft-labels"
    return words.split()


def learngene_of(flags: list[str], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    store = Store(flags[flags.index("--store") + 1])
    manifest = store.manifest("learngene", name)
    files = (store.read_bytes("learngene", name, f"learngene.{kind}") for kind in ("safetensors", "json"))
    return Learngene.from_bytes(*files).tensors, manifest.metadata["cost"]


def test_the_commands_share_one_cache(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    method = ["--method", "any-size:parts=2:shallowest=1:stages=2", "--soft-labels-dtype", "float32"]
    assert cli.main(["softlabels", *flags, *method, "--epochs", "1"]) == 0
    assert "1 parts of epochs to compute" in capsys.readouterr().out
    assert cli.main(["distill", *flags, *method, "--name", "one"]) == 0
    assert cli.main(["distill", *flags, *method, "--name", "two", "--view-seed", "0", "--seed", "0"]) == 0
    assert cli.main(["distill", *flags, *method, "--name", "online", "--no-soft-labels"]) == 0
    (one, cost_one), (two, cost_two), (online, cost_online) = (
        learngene_of(flags, name) for name in ("one", "two", "online")
    )
    assert equal(one, two) and equal(one, online)
    assert cost_online["teacher_flops"] == 2 * cost_one["teacher_flops"] > 0, "it asked in the second epoch only"
    assert cost_two["teacher_flops"] == 0 and cost_two["flops"] == cost_online["flops"]
    capsys.readouterr()
    assert cli.main(["softlabels", *flags, *method]) == 0
    assert "nothing to do" in capsys.readouterr().out
    store = Store(flags[flags.index("--store") + 1])
    (key,) = {manifest.name.partition("/")[0] for manifest in store.manifests("softlabels")}
    assert cli.main(["list", "--store", store.uri]) == 0
    assert f"softlabels/{key}" in capsys.readouterr().out
    assert cli.main(["show", f"softlabels/{key}", "--store", store.uri]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["epochs"] == 2 and facts["cost"] == {
        "images": cost_online["images"],
        "teacher_flops": cost_online["teacher_flops"],
    }


def test_a_damaged_file_is_one_line_and_can_be_computed_anew(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags, "--epochs", "1", "--seed", "8"]
    assert cli.main(["softlabels", *flags]) == 0
    store = Store(flags[flags.index("--store") + 1])
    newest = max(Path(store.uri).glob(f"softlabels/*/*/*/{FILE}"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-9])
    capsys.readouterr()
    assert cli.main(["distill", *flags, "--name", "damaged"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "softlabels --overwrite" in error and "Traceback" not in error
    assert cli.main(["softlabels", *flags, "--overwrite"]) == 0
    assert cli.main(["distill", *flags, "--name", "damaged"]) == 0
    assert learngene_of(flags, "damaged")[1]["teacher_flops"] == 0


def test_descendants_read_them_too(flags: list[str]) -> None:
    assert cli.main(["distill", *flags, "--name", "untrained", "--epochs", "0"]) == 0
    values = {flag: flags[flags.index(flag) + 1] for flag in flags if flag.startswith("--") and flag != "--soft-labels"}
    for flag in ("--preset", "--depth", "--workers"):
        del values[flag]
    values |= {"--learngene": "untrained", "--arms": "scratch", "--depths": "1", "--epochs": "1", "--drop-path": "0"}
    words = [word for pair in values.items() for word in pair]
    for name in ("first", "second"):
        assert cli.main(["sweep", *words, "--name", name, "--in-process", "--soft-labels", "--view-seed", "9"]) == 0
    store = Store(values["--store"])
    first, second = (store.manifests("descendant", under=name)[0].metadata["row"] for name in ("first", "second"))
    assert first["teacher_flops"] > 0 == second["teacher_flops"]
    assert first["val_loss"] == second["val_loss"]
