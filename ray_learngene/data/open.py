"""Any image set by its name: the one place that knows all kinds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ray_learngene.config import DataConfig
from ray_learngene.data.formats.builtin import open_cifar10, open_digits
from ray_learngene.data.formats.folder import open_folder
from ray_learngene.data.formats.parquet import open_parquet
from ray_learngene.data.formats.split_names import split_of
from ray_learngene.data.formats.timm_sets import open_timm_sets
from ray_learngene.data.image_set import ImageSets, check_splits, hold_out, share_of
from ray_learngene.errors import UserError

KINDS = "digits, cifar10, a folder of class folders, Parquet files at any URI, torch/NAME, hfds/NAME or wds/PATH"


def open_image_sets(config: DataConfig) -> ImageSets:
    """Open the training and the validation split of `config.data`.

    Raises:
        UserError: there is no such set, or its labels or splits are not usable; one line that names the place.
    """
    sets = _open(config)
    if config.validate_on == "holdout":
        note = f"validating on {100 * config.holdout:g} % per class held out of the training split of {config.data}"
        sets = hold_out(sets.train, config.holdout, note)
    train, val = share_of(sets.train, config.train_share), share_of(sets.val, config.val_share)
    sets = replace(sets, train=train, val=val)
    check_splits(sets, config.data)
    return sets


def _open(config: DataConfig) -> ImageSets:
    data = config.data
    if data == "digits":
        return open_digits()
    if data == "cifar10":
        return open_cifar10(config.data_dir)
    if data.startswith(("torch/", "hfds/")):
        return open_timm_sets(
            data,
            config.data_dir,
            holdout=config.holdout,
            image_column=config.image_column,
            label_column=config.label_column,
        )
    if data.startswith("wds/"):
        raise UserError(
            f"{data} is a stream without random access: run `learngene data convert --data {data} --out FOLDER`"
        )
    path = os.path.abspath(os.path.expanduser(data))  # workers run in other folders
    if "://" in data or data.endswith(".parquet") or _holds_parquet(Path(path)):
        return open_parquet(config)
    if os.path.isdir(path):
        return open_folder(path, config.holdout)
    raise UserError(f"no image set {data!r}: give {KINDS}")


def _holds_parquet(folder: Path) -> bool:
    """Whether there are Parquet files in a folder, its folders, or folders of splits in those (the Hub's layout)."""
    if any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")):
        return True
    deeper = (path.relative_to(folder).parts for path in folder.glob("*/*/*.parquet"))
    return any(split_of(parts[1]) and not parts[0].startswith((".", "_")) for parts in deeper)
