"""One set of images and one ancestry model for all."""

from __future__ import annotations

import pytest
from torch import Tensor

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.data.pipeline import ImagePipeline
from tests.ancestry.soft_label_runs import distilled, some_images, vision_transformer


@pytest.fixture(scope="package")
def images() -> ImagePipeline:
    return some_images()


@pytest.fixture(scope="package")
def ancestry() -> Ancestry:
    return Ancestry(vision_transformer())


@pytest.fixture(scope="package")
def online(tmp_path_factory: pytest.TempPathFactory, images: ImagePipeline, ancestry: Ancestry) -> dict[str, Tensor]:
    return distilled(tmp_path_factory.mktemp("online"), images, ancestry, None)[0]
