"""What is published says nothing about the folders of the machine that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_learngene.config import AncestryConfig, DistillConfig, ExtractConfig, PullConfig, SweepConfig
from ray_learngene.provenance import publishable
from tests.data.image_files import write_class_folders

MODEL = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("/home/me/flowers", "flowers"),
        ("~/flowers/", "flowers"),
        ("local-dir:/home/me/teacher", "local-dir:teacher"),
        ("wds//data/shards", "wds/shards"),
        ("file:///home/me/store", "store"),
        ("s3://bucket/store", "s3://bucket/store"),
        ("https://me:secret@host/x", "https://host/x"),
        ("params<=60k", "params<=60k"),
        ({"address": "10.0.0.1:6379", "lr": 0.1, "paths": ["/a/b"]}, {"lr": 0.1, "paths": ["b"]}),
    ],
)
def test_what_an_artefact_shows_of_a_setting(setting: Any, shown: Any) -> None:
    assert publishable(setting) == shown


def test_no_absolute_path_and_no_address_is_in_a_store(tmp_path: Path) -> None:
    from ray_learngene.cli.pull import pull
    from ray_learngene.distillation.distill import distill
    from ray_learngene.distillation.extract import extract
    from ray_learngene.distillation.train_ancestry import train_ancestry
    from ray_learngene.sweeps.sweep import sweep

    for split in ("train", "val"):
        write_class_folders(tmp_path / "images" / split, {"a": 8, "b": 8})
    store = tmp_path / "store"
    common: dict[str, Any] = {
        **{"data": str(tmp_path / "images"), "store": str(store), "address": "10.1.2.3:6379"},
        **{"batch_size": 4, "warmup_epochs": 0, "epochs": 1},
    }
    model = {**MODEL, "class_token": False, "global_pool": "avg"}
    model_name = "deit_tiny_patch16_224"
    train_ancestry(AncestryConfig(**common, name="a", workers=0, model=model_name, model_args=model))
    teacher = pull(PullConfig(store=str(store), artefact="ancestries/a", out=str(tmp_path / "teacher")))
    distill(DistillConfig(**common, name="g", workers=0, ancestry=f"local-dir:{teacher}", preset="nano", method="tleg"))
    extract(ExtractConfig(name="e", method="pretrained", source=f"local-dir:{teacher}", store=str(store)))
    sweep(SweepConfig(**common, name="s", learngene="g", depths="1", ancestry=f"local-dir:{teacher}", in_process=True))
    written = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert {"manifest.json", "metrics.json", "README.md", "sweep.json", "results.parquet"} <= {p.name for p in written}
    for path, text in written.items():
        assert str(tmp_path).encode() not in text and b"10.1.2.3" not in text, path
