"""Runs the authors' SWS code on images in memory; see `authors`.

python -m benchmarks.proof.authors_main CHECKOUT SIZES TEACHER IMAGES JOBS

IMAGES is a `DataConfig` as JSON, JOBS a list of calls of the release's main.py, run one after another. All that trains
is the release's own. Where the release would lose for a reason that is not its method's, this helps it:

- images are in memory, as in its own CIFAR10 branch, and the head is transferred, as in its ImageNet branch;
- one process has another order of the images in every epoch, as several processes have;
- descendants have the norm before the mean over tokens, as the auxiliary has;
- only the last epoch is validated, and one process trains all sizes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import timm.utils
import torch
from PIL import Image
from timm.models import VisionTransformer, register_model

from benchmarks.rivals_sws import prepare, run
from ray_learngene.config import DataConfig
from ray_learngene.data.open import open_image_sets


def main() -> None:
    checkout, sizes, teacher, images, jobs = sys.argv[1:]
    work = Work(json.loads(sizes))
    set_up(checkout, work, teacher, DataConfig(**json.loads(images)))
    for job in json.loads(jobs):
        work.begin(job)
        run(checkout, [str(word) for word in job["arguments"]])


class Work:
    """The call that runs.

    Attributes:
        sizes: Of its models. `descendant` is a descendant's depth.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes

    def begin(self, job: Mapping[str, Any]) -> None:
        self.seed, self.epochs = job["seed"], job["epochs"]
        self.sizes["descendant"] = job["depth"]
        self.cost = Path(job["folder"]) / "cost.json"
        self.spent = json.loads(self.cost.read_text()) if self.cost.exists() else {"cpu_seconds": 0, "wall_seconds": 0}
        self.began = time.process_time(), time.monotonic()

    def enter(self, epoch: int) -> None:
        self.last = epoch == self.epochs - 1
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # a run that goes on has other views too
            seed(1000 * self.seed + epoch)

    def leave(self) -> None:
        """Write the cost so far, with earlier attempts."""
        now = time.process_time() - self.began[0], time.monotonic() - self.began[1]
        spent = {name: self.spent[name] + used for name, used in zip(("cpu_seconds", "wall_seconds"), now, strict=True)}
        self.cost.write_text(json.dumps(spent))


def set_up(checkout: str, work: Work, teacher: str, images: DataConfig) -> None:
    """Let the authors' modules find their models and images."""
    sizes = work.sizes
    prepare(checkout, sizes, teacher)
    import datasets  # type: ignore[import-not-found]  # these are the authors'
    import engine  # type: ignore[import-not-found]
    import utils  # type: ignore[import-not-found]

    sets = open_image_sets(images)
    train, evaluate, transfer = engine.train_one_epoch, engine.evaluate, utils.gene_tranfer_1

    def build_dataset(is_train: bool, args: Any) -> tuple[Any, int]:
        chosen = sets.train if is_train else sets.val
        return InMemory(chosen, datasets.build_transform(is_train, args)), len(chosen.classes)

    def train_one_epoch(*given: Any, **named: Any) -> Any:
        loader, epoch = given[2], given[5]
        loader.sampler.set_epoch(epoch)
        work.enter(epoch)
        return train(*given, **named)

    def last_evaluate(*given: Any) -> dict[str, float]:
        work.leave()
        return evaluate(*given) if work.last else {"acc1": 0.0}

    def gene_tranfer_1(*given: Any, **named: Any) -> dict[str, Any]:
        return {name.replace("fc_norm", "norm"): value for name, value in transfer(*given, **named).items()}

    datasets.build_dataset = build_dataset
    engine.train_one_epoch, engine.evaluate, utils.gene_tranfer_1 = train_one_epoch, last_evaluate, gene_tranfer_1
    timm.utils.get_state_dict = lambda model: {}  # its average of weights is off, and saving it would fail then

    @register_model
    def bench_descendant(pretrained: bool = False, **options: Any) -> Any:
        return VisionTransformer(
            img_size=sizes["size"], patch_size=sizes["patch"], embed_dim=sizes["width"], num_heads=sizes["heads"],
            depth=sizes["descendant"], class_token=False, global_pool="avg", fc_norm=False,
            **{name: value for name, value in options.items() if value is not None},
        )  # fmt: skip


class InMemory(torch.utils.data.Dataset[tuple[Any, int]]):
    """Images in memory with a transform, as torchvision's CIFAR10 has them."""

    def __init__(self, images: Any, transform: Any) -> None:
        self.pixels = [np.asarray(images.image(index)) for index in range(len(images))]
        self.labels, self.transform = [int(label) for label in images.labels], transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


if __name__ == "__main__":
    main()
