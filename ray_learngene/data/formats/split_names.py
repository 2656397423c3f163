"""Which split a file belongs to, by its name or the name of a folder above it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ray_learngene.errors import UserError

_SPLIT = re.compile(r"(?:^|[-_.])(train|val|test)(?:ing|id|idation)?(?![a-z])", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` of a relative path or of a split's name; the file name counts before its folders."""
    for part in reversed(name.split("/")):
        match = _SPLIT.search(part)
        if match:
            return match[1].lower()
    return None


def group_by_split(names: Sequence[str], where: str) -> dict[str, list[str]]:
    """Files by split: `train` and perhaps `val`, or all of them as `train` where no name tells a split.

    A test split is the validation split where there is no other, and unused where there is one.

    Raises:
        UserError: some names tell a split and some do not, or there is no training split.
    """
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(split_of(name), []).append(name)
    if None in groups and len(groups) > 1:
        raise UserError(f"{where}: {groups[None][0]} belongs to no split but others do; name it train-... or val-...")
    if None in groups:
        return {"train": groups[None]}
    if "train" not in groups:
        raise UserError(f"{where}: only {' and '.join(map(str, groups))} files; add train-... files")
    val = groups.get("val") or groups.get("test")
    return {"train": groups["train"], **({"val": val} if val else {})}


# such as Training, seg_train, test_set and val_images, but neither train_station nor test-tube
_SPLIT = re.compile(
    r"(?:[a-z0-9]+[-_. ])?(train|val|test)(?:ing|id|idation)?(?:[-_. ]?(?:set|data|images|split))?", re.IGNORECASE
)


_PLAIN = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def _only(root: str, splits: Mapping[str, str], split: str) -> str | None:
    """The folder of a split; the one of the plainest name where there are several."""
    found = [name for name, which in splits.items() if which == split]
    plain = [name for each in _PLAIN[split] for name in found if name.lower() == each]
    if len(found) > 1 and not plain:
        raise UserError(f"{root} has {' and '.join(found)}: which one is {split}? Move the others away")
    return next(iter([*plain, *found]), None)
