"""The check names every unreadable image at once."""

import logging
from pathlib import Path

import pytest

from ray_learngene.config import DataConfig
from ray_learngene.data.check import check_images
from ray_learngene.data.image_set import ImageSet
from ray_learngene.data.open import open_image_sets
from ray_learngene.errors import UserError
from tests.data.image_files import write_class_folders


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return open_image_sets(DataConfig(data=str(write_class_folders(tmp_path / "set", {"a": 20, "b": 2})))).train


def damage(images: ImageSet, index: int, keep: int) -> str:
    path = Path(images.describe(index))
    path.write_bytes(path.read_bytes()[:keep])
    return str(path)


def test_a_good_set_passes_and_reports_progress(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray_learngene.progress.LINE_SECONDS", 0)
    with caplog.at_level(logging.INFO, "ray_learngene"):
        check_images(images, "auto")
    assert len(caplog.messages) == 19
    assert caplog.messages[-1].startswith("check: 19 of 19 images   ")


def test_full_decodes_and_headers_only_open(images: ImageSet) -> None:
    path = damage(images, 3, -100)
    check_images(images, "headers")
    check_images(images, "off")
    for mode in ("full", "auto"):
        with pytest.raises(UserError, match=f"^cannot read image {path}: "):
            check_images(images, mode)


def test_many_are_counted_and_the_first_named(images: ImageSet) -> None:
    paths = [damage(images, index, 10) for index in range(7)]
    with pytest.raises(UserError, match=r"^7 of 19 images cannot be read: .*; and 2 more; remove or replace") as caught:
        check_images(images, "headers")
    message = str(caught.value)
    assert all(path in message for path in paths[:5]) and paths[5] not in message and "\n" not in message
