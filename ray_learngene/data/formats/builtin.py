"""Image sets known by name: scikit-learn's digits and CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ray_learngene.data.formats.timm_sets import open_timm_sets
from ray_learngene.data.image_set import ArraySet, ImageSets, hold_out
from ray_learngene.errors import UserError
from ray_learngene.progress import counted

_DIGITS_HOLDOUT = 0.2
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_FOLDERS = (".", "cifar-10-batches-bin", "package/cifar-10-batches-bin")
_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR10_TEST = "test_batch.bin"
_CIFAR10_ROW = 1 + 3 * 32 * 32


def open_digits() -> ImageSets:
    """Return the 1,797 8x8 scans of handwritten digits that come with scikit-learn.

    A fifth of each digit is held out.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    whole = ArraySet("digits", pixels, digits.target.astype(np.int64), tuple(str(digit) for digit in range(10)))
    return hold_out(whole, _DIGITS_HOLDOUT)


def open_cifar10(data_dir: str | None) -> ImageSets:
    """CIFAR-10 from its original binary files in `data_dir`, or through torchvision where there are none.

    Raises:
        UserError: a binary file is missing or is not one, or the set cannot be downloaded.
    """
    folder = _cifar10_binaries(Path(data_dir).expanduser()) if data_dir else None
    if folder is None:
        return open_timm_sets("torch/cifar10", data_dir)
    missing = [name for name in (*_CIFAR10_TRAIN, _CIFAR10_TEST) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: unpack all of cifar-10-binary.tar.gz there")
    return ImageSets(_read_cifar10(folder, _CIFAR10_TRAIN), _read_cifar10(folder, (_CIFAR10_TEST,)))


def _cifar10_binaries(data_dir: Path) -> Path | None:
    names = (*_CIFAR10_TRAIN, _CIFAR10_TEST)
    folders = (data_dir / name for name in _CIFAR10_FOLDERS)
    return next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)


def _read_cifar10(folder: Path, names: tuple[str, ...]) -> ArraySet:
    rows = np.concatenate([_read_cifar10_file(folder / name) for name in names])
    pixels = np.ascontiguousarray(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    split = "test" if names == (_CIFAR10_TEST,) else "train"
    return ArraySet(f"cifar10 {split}", pixels, rows[:, 0].astype(np.int64), _CIFAR10_CLASSES)


def _read_cifar10_file(path: Path) -> np.ndarray:
    values = np.fromfile(path, dtype=np.uint8)
    if not values.size or values.size % _CIFAR10_ROW:
        raise UserError(
            f"{path} is not a CIFAR-10 binary: {counted(values.size, 'byte')} are not rows of {_CIFAR10_ROW}; "
            "copy it again"
        )
    rows = values.reshape(-1, _CIFAR10_ROW)
    wrong = np.flatnonzero(rows[:, 0] >= len(_CIFAR10_CLASSES))
    if wrong.size:
        raise UserError(f"{path} row {wrong[0]}: label {rows[wrong[0], 0]} is above 9; copy the file again")
    return rows
