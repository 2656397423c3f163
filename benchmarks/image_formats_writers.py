"""Writes the images of `benchmarks.image_formats` in the rivals' formats, in an environment that has the rivals."""

import sys
from pathlib import Path

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before any import of torchvision)
import pyarrow.parquet
import webdataset
from streaming import MDSWriter

SHARD_BYTES = 16 * 2**20


def write(folder: Path) -> None:
    """Convert `folder/ours`, the training split in Parquet, to `folder/webdataset` and `folder/streaming`."""
    tables = [pyarrow.parquet.read_table(path) for path in sorted((folder / "ours").glob("train-*.parquet"))]
    rows = [row for table in tables for row in table.select(["image", "label"]).to_pylist()]
    classes = {name: number for number, name in enumerate(sorted({row["label"] for row in rows}))}
    (folder / "webdataset").mkdir()
    pattern = str(folder / "webdataset" / "train-%05d.tar")
    with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as tars:
        for number, row in enumerate(rows):
            tars.write({"__key__": f"{number:07d}", "img": row["image"], "cls": classes[row["label"]]})
    with MDSWriter(
        out=str(folder / "streaming"), columns={"image": "bytes", "label": "int"}, size_limit=SHARD_BYTES
    ) as shards:
        for row in rows:
            shards.write({"image": row["image"], "label": classes[row["label"]]})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
