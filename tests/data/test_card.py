"""What the card of an image set states, and that it stays with converted images."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_learngene.config import DataConfig
from ray_learngene.data.convert import convert
from ray_learngene.data.open import open_image_sets
from tests.data.image_files import write_class_folders


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("license: [mit, cc-by-nc-4.0]", "cc-by-nc-4.0 AND mit"),
        ("license: other\nlicense_name: ours", "ours"),
        ("license: other", None),
        ("license: {a: b}", None),
        ("license: [oops", None),
        ("pretty_name: Pets", None),
    ],
)
def test_a_licence_goes_with_images_that_are_converted(tmp_path: Path, front: str, license: str | None) -> None:
    data = write_class_folders(tmp_path / "pets", {"cat": 4, "dog": 4})
    (data / "README.md").write_text(f"---\n{front}\n---\nPets.\n", encoding="utf-8")
    config = DataConfig(data=str(data))
    assert open_image_sets(config).license == license
    out = tmp_path / "converted"
    convert(config, str(out))
    assert (out / "README.md").exists() == (license is not None)
    converted = open_image_sets(DataConfig(data=str(out)))
    assert (converted.license or "").lower() == (license or "").lower().replace(" and ", "-and-")


@pytest.mark.parametrize(
    "content", [None, b"", b"no front matter", b"\xff\xfe", b"---\nlicense: mit\n---\n" + b"x" * 2**20]
)
def test_images_without_a_card_have_no_licence(tmp_path: Path, content: bytes | None) -> None:
    data = write_class_folders(tmp_path / "pets", {"cat": 4, "dog": 4})
    if content is not None:
        (data / "README.md").write_bytes(content)
    assert open_image_sets(DataConfig(data=str(data))).license is None
