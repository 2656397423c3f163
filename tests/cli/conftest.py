"""A store that the tests of mistakes name, and the command line as a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from ray_learngene.methods.registry import create_method
from ray_learngene.models.build import timm_arguments
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.specs import PRESETS
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.store.store import Store

NANO = PRESETS["nano"]
DIGITS = tuple(str(digit) for digit in range(10))
PREPROCESSING = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, interpolation="bicubic")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an ancestry of seven classes, one of ten, and a learngene."""
    root = tmp_path_factory.mktemp("store")
    for name, labels in (("seven", DIGITS[:7]), ("ten", DIGITS), ("named", tuple("abcdefghij"))):
        torch.manual_seed(0)
        spec = NANO.replace(depth=1, classes=len(labels))
        folder = root / "made" / name
        export_timm(
            create_method("scratch").expand(None, spec),
            folder,
            labels=labels,
            preprocessing=PREPROCESSING,
            model_args=timm_arguments(spec),
        )
        Store(str(root / "store")).publish("ancestry", name, folder, {"fingerprint": "other", "parameters": 1})
    method = create_method("sws")
    gene = method.extract(method.auxiliary(NANO)).describe(
        labels=DIGITS, preprocessing=PREPROCESSING.model_dump(mode="json")
    )
    gene.save(root / "made" / "gene")
    facts = {
        **gene.description(),
        "fingerprint": "other",
        "cost": {"seconds": 1, "images": 1},
        "metrics": {"top1": 1.0},
    }
    Store(str(root / "store")).publish("learngene", "gene", root / "made" / "gene", facts)
    conv = timm.create_model("mobilenetv3_small_050", num_classes=10)
    export_timm(conv, root / "made" / "conv", labels=DIGITS, preprocessing=PREPROCESSING)
    Store(str(root / "store")).write_text("sweeps/old/sweep.json", '{"common": {"learngene": "another"}}')
    return root / "store"
