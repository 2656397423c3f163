"""Small real image files for the data tests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def photo(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Return a smooth colour image, which JPEG changes little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Return a folder of JPEGs for every class; class names and numbers of images as in `counts`."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            photo(100 * number + index).save(root / name / f"{index}.jpg")
    return root


def write_parquet(
    path: Path, labels: Sequence[Any], images: Sequence[Any] | None = None, metadata: Any = None, **columns: Any
) -> Path:
    """Return a Parquet file of JPEGs, in row groups of three."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [encoded(photo(row)) for row in range(len(labels))] if images is None else images
    table = pa.table({"image": images, "label": labels, **columns})
    if metadata:
        table = table.replace_schema_metadata({name: json.dumps(value) for name, value in metadata.items()})
    pq.write_table(table, path, row_group_size=3)
    return path
