"""Which split a name tells, of a file, a folder, a row or a split of the hub: the one rule for all formats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ray_learngene.errors import UserError

PLAIN = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_WORD = re.compile(r"(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?)(?:set|data|images|split)?\d*")
# What may follow the split: numbers, names of parts, and the endings of files.
_AFTER = re.compile(
    r"[a-z]|.*\d.*|of|part|shard|full|clean|set|data|images|split|parquet|arrow|snappy|zstd|tar|t?gz|zst|"
)
_KEYS = ("split", "subset", "set", "fold", "partition")  # of a folder such as split=train


def split_of(name: str) -> str | None:
    """Return `train`, `val` or `test` of a relative path or of a split's name; the file name counts before its folders.

    A part of the path tells a split where its last word does, numbers and such aside: `seg_train`, `trainset`,
    `train-00001-of-00002.parquet`, `test_images`, `split=val`; but not `train_station`.
    """
    return next(filter(None, map(_told, reversed(name.split("/")))), None)


def _told(part: str) -> str | None:
    key, equals, value = part.lower().partition("=")
    if equals and key not in _KEYS:
        return None
    for word in reversed(re.split(r"[-_. ]+", value if equals else part.lower())):
        if match := _WORD.fullmatch(word):
            return next(split for split, names in PLAIN.items() if match[1] in names)
        if not _AFTER.fullmatch(word):
            return None
    return None


def _holds_a_split_word(name: str) -> bool:
    return any(_WORD.fullmatch(word) for word in re.split(r"[-_. /]+", name.lower()))


def group_by_split(names: Sequence[str], where: str) -> dict[str, list[str]]:
    """Return the files by split: `train` and perhaps `val`, or all of them as `train` where no name tells a split.

    A test split is left out where there is a validation split; where there is none, it is there as `test`.

    Raises:
        UserError: some names tell a split and some do not, or there is no training split.
    """
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(split_of(name), []).append(name)
    if None in groups and len(groups) > 1:
        raise UserError(f"{where}: {groups[None][0]} belongs to no split but others do; name it train-... or val-...")
    if None in groups:
        if unclear := next(filter(_holds_a_split_word, groups[None]), None):
            raise UserError(f"{where}: is the name of {unclear} that of a split? Write clean-train-0 for train-clean-0")
        return {"train": groups[None]}
    if "train" not in groups:
        raise UserError(f"{where}: only {' and '.join(map(str, groups))} files; add train-... files")
    other = next((split for split in ("val", "test") if split in groups), None)
    return {"train": groups["train"], **({other: groups[other]} if other else {})}


def the_one(where: str, splits: Mapping[str, str], split: str) -> str | None:
    """Return the name that tells this split; the plainest one where several do.

    Raises:
        UserError: several do, and none is plain.
    """
    found = [name for name, which in splits.items() if which == split]
    plain = [name for each in PLAIN[split] for name in found if name.lower() == each]
    if len(found) > 1 and not plain:
        raise UserError(f"{where} has {' and '.join(found)}: which one is {split}? Move the others away")
    return next(iter([*plain, *found]), None)
