"""Find broken artefacts: their files were deleted by hand or lost.

The command that made a broken artefact makes it again. Sizes are compared here; `pull` compares hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ray_learngene.io.objects import Objects
from ray_learngene.store.index import Entry
from ray_learngene.store.manifest import FOLDERS, GROUPED, MANIFEST, FileEntry, Kind, folder_of


def missing_file(objects: Objects, folder: str, files: Sequence[FileEntry]) -> str | None:
    """Return the path of a file that a folder of the store does not hold with its size; None where all are there."""
    there = {found.path: found.bytes for found in objects.look(folder)}
    return next((file.path for file in files if there.get(f"{folder}/{file.path}") != file.bytes), None)


def broken_text(kind: Kind, name: str, uri: str) -> str:
    return f"{kind} {name} in {uri} is broken: files are missing, and the command that made it makes it again"


class Listing:
    """What lies below the folder of a kind, or of one group of it, by one list.

    Attributes:
        names: Of the artefacts, sorted.
    """

    def __init__(self, objects: Objects, kind: Kind, under: str = "") -> None:
        root, depth = FOLDERS[kind], 2 if kind in GROUPED else 1
        self.names: list[str] = []
        self._bytes: Counter[str] = Counter()
        for found in objects.look(f"{root}/{under}" if under else root):
            parts = found.path.split("/")
            if len(parts) == depth + 2 and parts[-1] == MANIFEST:
                self.names.append("/".join(parts[1:-1]))
            elif len(parts) > depth + 2:
                self._bytes["/".join(parts[: depth + 2])] += found.bytes

    def broken(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return those of the entries of an index whose files are not all there."""
        return [one for one in entries if self._bytes[f"{folder_of(one.kind, one.name)}/{one.folder}"] != one.size]
