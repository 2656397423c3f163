"""The ancestry models that a page draws a line for: those of its models' learngenes, with what they score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.pages.columns import Record, label_set, numbered_sets
from ray_learngene.store.manifest import FOLDERS, Kind, Manifest
from ray_learngene.store.rows import numbers_of
from ray_learngene.store.store import Entry, Store

_STORED = f"store:{FOLDERS['ancestry']}/"


class Ancestries:
    """What a store says of ancestry models; it is asked once for each."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._names: dict[str, str | None] = {}  # by learngene
        self._entries: dict[str, Entry | None] = {}  # by name

    def lines(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Name, image set and top-1 of those that the store holds and that know the same classes."""
        numbers = numbered_sets(records)
        found = {}
        for one in records:
            name = self._of(one["learngene"]) if one["learngene"] else None
            entry = self._entry(name) if name else None
            scores = numbers_of(entry.facts, "top1") if entry else None
            if entry and scores and label_set(entry.facts) == one["labels"]:
                found[name, numbers[one["images_of_set"]]] = round(scores["top1"], 4)
        return [{"name": name, "set": number, "top1": top1} for (name, number), top1 in found.items()]

    def _entry(self, name: str) -> Entry | None:
        if name not in self._entries:
            manifest = self._look_up("ancestry", name)
            self._entries[name] = Entry.of(manifest) if manifest else None
        return self._entries[name]

    def _of(self, learngene: str) -> str | None:
        """Return the name in the store of the ancestry model that a learngene was distilled from."""
        if learngene not in self._names:
            manifest = self._look_up("learngene", learngene)
            ancestry = manifest.metadata.get("ancestry") if manifest else None
            stored = isinstance(ancestry, str) and ancestry.startswith(_STORED)
            self._names[learngene] = str(ancestry).removeprefix(_STORED) if stored else None
        return self._names[learngene]

    def _look_up(self, kind: Kind, name: str) -> Manifest | None:
        try:
            return self.store.look_up(kind, name)
        except UserError:  # its manifest is not to be trusted, or the name in the row is none
            return None
