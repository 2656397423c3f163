"""`--publish best`: the weights of the epoch that scored best on images held out of training, also after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_learngene.config import AncestryConfig, DataConfig, SweepConfig
from ray_learngene.data.image_set import Subset
from ray_learngene.data.open import open_image_sets
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.errors import UserError
from ray_learngene.models.timm_folder import load_timm
from ray_learngene.store.store import Store
from ray_learngene.training.evaluation import evaluate
from ray_learngene.training.trainer import Trainer
from tests.sweeps.test_descendant import PREPROCESSING

VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 1, "num_heads": 2}


class Killed(Exception):
    pass


def config(store: Path, **changes: Any) -> AncestryConfig:
    # the learning rate undoes what the first steps learned, so that the last epoch is not the best
    settings = {"data": "digits", "train_share": 0.3, "val_share": 0.5, "batch_size": 32, "epochs": 4, "lr": 0.1}
    base = AncestryConfig(
        **{**settings, "warmup_epochs": 0, "min_lr": 0.02, "workers": 0, "checkpoint_every": 1, "ema": 0.8},
        **{"store": str(store), "name": "a", "model": "deit_tiny_patch16_224", "publish": "best"},
        model_args={**VIT, "class_token": False, "global_pool": "avg"},
    )
    return base.model_copy(update=changes)


def test_the_best_epoch_on_held_out_training_images_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path / "store")
    manifest = train_ancestry(made)
    history = manifest.metadata["history"]
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3, 4]
    chosen = next(entry for entry in history if entry["epoch"] == manifest.metadata["published_epoch"])
    assert chosen["held_out_top1"] == max(entry["held_out_top1"] for entry in history)
    assert manifest.metadata["metrics"]["top1"] == chosen["top1"]

    sets = open_image_sets(made)
    images = ImagePipeline.of(sets, PREPROCESSING, made)
    assert isinstance(images.train, Subset) and isinstance(images.choice, Subset)
    assert sorted([*images.train.indices, *images.choice.indices]) == [*range(len(sets.train))]
    assert images.val is sets.val
    folder = Store(made.store).download("ancestry", "a", tmp_path / "model")
    model = load_timm(folder)
    reported, held_out = (
        evaluate(model, loader, device=torch.device("cpu")).top1
        for loader in ImagePipeline.of(sets, model_preprocessing(model), made).scored_batches(32)
    )
    assert (reported, held_out) == (chosen["top1"], chosen["held_out_top1"])

    def die_in_the_last_epoch(self: Any, metrics: dict[str, Any]) -> None:
        if metrics.get("epoch") == 4:
            raise Killed

    killed = config(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_tell", die_in_the_last_epoch)
        with pytest.raises(Killed):
            train_ancestry(killed)
    again = train_ancestry(killed)
    weights = {file.path: file.sha256 for file in manifest.files if file.path.endswith(".safetensors")}
    assert weights == {file.path: file.sha256 for file in again.files if file.path.endswith(".safetensors")}
    assert set(weights) == {"model.safetensors", "ema/model.safetensors"}
    last = train_ancestry(config(tmp_path / "last", publish="last", epochs=1))
    assert "published_epoch" not in last.metadata and len(last.metadata["history"]) == 1


def model_preprocessing(model: Any) -> Any:
    from ray_learngene.models.preprocessing import Preprocessing

    return Preprocessing.of(model, "the model")


def test_held_out_images_are_neither_trained_on_nor_reported() -> None:
    made = SweepConfig(data="digits", name="s", learngene="g", publish="best", validate_on="holdout", val_share=0.5)
    sets = open_image_sets(made)
    images = ImagePipeline.of(sets, PREPROCESSING, made)
    assert isinstance(images.train, Subset) and isinstance(images.choice, Subset)
    assert images.train.whole is images.choice.whole is sets.train  # of which what is reported is no part
    assert not set(images.train.indices) & set(images.choice.indices)
    assert ImagePipeline.of(sets, PREPROCESSING, made.model_copy(update={"publish": "last"})).choice is None


def test_nothing_to_choose_on_is_refused() -> None:
    sets = open_image_sets(DataConfig(data="digits"))
    first = [int(np.flatnonzero(sets.train.labels == label)[0]) for label in range(10)]
    single = type(sets)(Subset(sets.train, np.array(first)), sets.val)
    with pytest.raises(UserError, match="two training images"):
        ImagePipeline.of(single, PREPROCESSING, SweepConfig(data="digits", name="s", learngene="g", publish="best"))
