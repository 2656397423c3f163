"""The index of a store: what `list` and `pull` want to know of ten thousand manifests, in two lists and one table.

    <store>/index/snapshots/<number>.parquet              the facts of every manifest at some moment
    <store>/index/notes/<kind>/<name>~<what it becomes>    an artefact that has changed since, or is about to

A publisher leaves a note *before* it changes a manifest, so an artefact either is what the newest snapshot says or has
a note; readers take the snapshot and read the manifests of the noted artefacts. When notes are many, a reader that may
write makes the next snapshot: numbered one more than the one it read and created only if absent, so that every snapshot
includes the one before. Only then it deletes the notes whose change it saw in the manifests; a note whose change never
came (its publisher died, or another overwrote it) goes after a day, as do snapshots that are not the newest.

The manifests are the truth: without a snapshot, or with a damaged one, all of them are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import pyarrow
import pyarrow.parquet

from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable
from ray_learngene.io.objects import Found, Objects
from ray_learngene.store.manifest import (
    FOLDERS,
    GROUPED,
    MANIFEST,
    MOST_BYTES,
    Kind,
    Manifest,
    folder_of,
    parse_manifest,
)
from ray_learngene.store.rows import mapping

FOLDER = "index"
NOTES, SNAPSHOTS = f"{FOLDER}/notes", f"{FOLDER}/snapshots"
KINDS: tuple[Kind, ...] = ("learngene", "ancestry", "descendant")  # checkpoints come and go, and are not listed
MANY_NOTES = 64
FORGOTTEN = timedelta(days=1)
REBUILDS = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What the index knows of one artefact."""

    kind: Kind
    name: str
    version: str
    created: str
    size: int
    row: str
    folder: str

    @classmethod
    def of(cls, manifest: Manifest) -> Entry:
        """Return the entry of an artefact."""
        row = manifest.metadata.get("row")
        if not isinstance(row, dict):
            metrics = manifest.metadata.get("metrics")
            facts = {"params": manifest.metadata.get("parameters")}
            row = {**(metrics if isinstance(metrics, dict) else {}), **facts}
        return cls(
            manifest.kind,
            manifest.name,
            manifest.version,
            manifest.created,
            manifest.bytes,
            json.dumps({**_image_set(manifest.metadata), **row, **_label_set(manifest.metadata)}),
            manifest.base.rpartition("/")[2],
        )

    @cached_property
    def facts(self) -> dict[str, Any]:
        """A descendant's row of its results table; of others the parameters and metrics."""
        try:
            row = json.loads(self.row)
        except ValueError:
            return {}
        return row if isinstance(row, dict) else {}


SCHEMA = pyarrow.schema(
    [(field.name, pyarrow.int64() if field.name == "size" else pyarrow.string()) for field in fields(Entry)],
    metadata={"format": "3"},
)
Key = tuple[Kind, str]


def _label_set(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the classes of an artefact. Its own list of them overrules what its row says."""
    labels = metadata.get("labels")
    if not isinstance(labels, list):
        return {}
    # a teacher that names no classes, and no labels, leave a head without names
    return {"labels": labels_key(labels), "classes": len(labels) or mapping(metadata.get("spec")).get("classes", 0)}


def _image_set(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the image set of an artefact, where its row does not say it."""
    config = metadata.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    return {"data": data} if isinstance(data, str) else {}


def labels_key(labels: Iterable[object]) -> str:
    """Twelve hex digits that are the same for the same class names in the same order."""
    return hashlib.sha256(json.dumps([str(label) for label in labels]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Note:
    """An artefact that has changed or is about to, and the digest that its manifest then has ("" without one)."""

    path: str
    key: Key
    becomes: str
    written: datetime


def digest(manifest: bytes | None) -> str:
    """Return what tells one manifest of an artefact from every other."""
    return "" if manifest is None else hashlib.sha256(manifest).hexdigest()[:16]


class Index:
    """The index of one store. Every method raises UserError if the storage refuses."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def note(self, kind: Kind, name: str, manifest: bytes | None) -> str:
        """Announce that an artefact will have this manifest, or none; returns the note's path."""
        becomes = digest(manifest) or f"removed-{uuid.uuid4().hex[:8]}"
        path = f"{NOTES}/{folder_of(kind, name)}~{becomes}"
        if kind in KINDS:
            self.objects.put(path, b"")
        return path

    def entries(self, kinds: Sequence[Kind] = KINDS) -> dict[Key, Entry]:
        """Return the entries of all artefacts, as their manifests are now; perhaps those of some kinds only."""
        known = self._newest()
        if known is not None:
            return known
        there = {(kind, name) for kind in kinds for name in self.names(kind)}
        return _with({}, self._read(there)) if len(there) < MANY_NOTES else self._scan(keep=True)

    def of(self, there: set[Key]) -> dict[Key, Entry]:
        """Return the entries of exactly these artefacts, which are there."""
        known = self._newest()
        if known is None:
            known = {} if len(there) < MANY_NOTES else self._scan(keep=True)
        return self.completed(known, there)

    def _newest(self) -> dict[Key, Entry] | None:
        """Return the entries of the newest snapshot and of what has changed since.

        None if no snapshot is sound.
        """
        for _ in range(REBUILDS):
            notes = self._notes()  # before the snapshots: who deletes a note has made a snapshot first
            snapshots = self._snapshots()
            if not snapshots:
                return None
            number, newest = max(snapshots.items(), key=lambda item: item[0])
            data = self.objects.read(newest.path)
            if data is None:
                continue  # there is a newer one by now
            known = self._load(data, newest.path)
            if known is None:
                return None
            changed = self._read({note.key for note in notes})
            entries = _with(known, changed)
            if len(notes) >= MANY_NOTES:
                self._advance(number + 1, entries, notes, changed, snapshots.values())
            return entries
        return None

    def completed(self, known: dict[Key, Entry], there: set[Key]) -> dict[Key, Entry]:
        """Return the entries of exactly the artefacts that are there; the manifests of those not known are read."""
        kept = {key: entry for key, entry in known.items() if key in there}
        return _with(kept, self._read(there - kept.keys()))

    def rebuild(self) -> int:
        """Read every manifest and make a new snapshot of them; returns how many there are.

        Finds what was copied into the store or deleted from it by hand.

        Raises:
            UserError: The store cannot be written, or others kept making snapshots meanwhile.
        """
        return len(self._scan(keep=False))

    def _scan(self, keep: bool) -> dict[Key, Entry]:
        """Read every manifest; with `keep`, a snapshot is made only where it is worth it and may be written."""
        for _ in range(REBUILDS):
            notes, snapshots = self._notes(), self._snapshots()
            changed = self._read([(kind, name) for kind in KINDS for name in self.names(kind)])
            entries = _with({}, changed)
            if keep and len(entries) < MANY_NOTES:
                return entries
            number = max(snapshots, default=0) + 1
            if self._advance(number, entries, notes, changed, snapshots.values(), required=not keep) or keep:
                return entries
        raise UserError(f"the index of {self.objects.uri} is being rebuilt by others: run the command again later")

    def names(self, kind: Kind, under: str = "") -> list[str]:
        """Return the names of all artefacts of a kind, sorted, as the storage lists them; of a sweep `under` only."""
        root = FOLDERS[kind]
        depth = 2 if kind in GROUPED else 1
        paths = self.objects.named(f"{root}/{under}" if under else root, MANIFEST, depth - bool(under))
        return [path.removeprefix(f"{root}/").removesuffix(f"/{MANIFEST}") for path in paths]

    def _read(self, keys: Iterable[Key]) -> dict[Key, tuple[str, Entry | None]]:
        """Return the digest and entry of manifests; no entry if there is none, or none to trust, which is logged."""
        asked = sorted(keys)
        paths = [f"{folder_of(kind, name)}/{MANIFEST}" for kind, name in asked]
        texts = self.objects.read_many(paths, MOST_BYTES)
        found: dict[Key, tuple[str, Entry | None]] = {}
        for (kind, name), path, text in zip(asked, paths, texts, strict=True):
            entry = None
            if text is not None:
                try:
                    entry = Entry.of(parse_manifest(text, self.objects.uri_of(path), kind, name))
                except UserError as error:
                    log.warning("left out: %s", error)
            found[kind, name] = digest(text), entry
        return found

    def _notes(self) -> list[Note]:
        kinds = {FOLDERS[kind]: kind for kind in KINDS}
        notes = []
        for found in self.objects.look(NOTES):
            folder, _, rest = found.path.removeprefix(f"{NOTES}/").partition("/")
            name, _, becomes = rest.rpartition("~")
            try:
                folder_of(kinds[folder], name)
            except (KeyError, UserError):
                continue  # no file of this package
            becomes = "" if becomes.startswith("removed-") else becomes
            notes.append(Note(found.path, (kinds[folder], name), becomes, found.modified))
        return notes

    def _snapshots(self) -> dict[int, Found]:
        found = {
            one.path.removeprefix(f"{SNAPSHOTS}/").removesuffix(".parquet"): one for one in self.objects.look(SNAPSHOTS)
        }
        return {int(number): one for number, one in found.items() if number.isdecimal()}

    def _load(self, data: bytes, path: str) -> dict[Key, Entry] | None:
        """Return the entries of a snapshot; None where it is damaged."""
        try:
            found = pyarrow.parquet.read_schema(io.BytesIO(data))
            if found.names == SCHEMA.names and (found.metadata or {}).get(b"format") != SCHEMA.metadata[b"format"]:
                return None  # of a version whose rows said less
            table = pyarrow.parquet.read_table(io.BytesIO(data), schema=SCHEMA)
            rows = table.to_pylist()
            entries = [Entry(**row) for row in rows]
            for row, entry in zip(rows, entries, strict=True):
                if None in row.values():
                    raise ValueError("a value is missing")
                folder_of(entry.kind, entry.name)
            return {(entry.kind, entry.name): entry for entry in entries}
        except (
            OSError,
            pyarrow.ArrowException,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            UserError,
        ) as error:
            log.warning("%s is damaged or old, so all manifests are read: %s", self.objects.uri_of(path), error)
            return None

    def _advance(
        self,
        number: int,
        entries: dict[Key, Entry],
        notes: list[Note],
        changed: dict[Key, tuple[str, Entry | None]],
        snapshots: Iterable[Found],
        required: bool = False,
    ) -> bool:
        """Make the next snapshot and delete what it makes superfluous; False where another process was faster.

        A reader that may not write, or a storage where two may create one object, leaves everything as it is, unless
        the snapshot is required.
        """
        try:
            if not self.objects.creates_once and not required:
                return False
            if not self.objects.create(f"{SNAPSHOTS}/{number:08d}.parquet", _as_parquet(entries.values())):
                return False
            before = datetime.now(UTC) - FORGOTTEN
            there = {note.path: changed.get(note.key, ("", None))[0] == note.becomes for note in notes}
            seen = [note.path for note in notes if there[note.path] or note.written < before]
            self.objects.delete_many([*seen, *(one.path for one in snapshots if one.modified < before)])
        except Unavailable:
            raise
        except UserError as error:
            if required:
                raise
            log.debug("no new snapshot of the index: %s", error)
            return False
        return True


def _with(known: dict[Key, Entry], changed: dict[Key, tuple[str, Entry | None]]) -> dict[Key, Entry]:
    """Return the entries with those of changed artefacts in the place of what was known of them."""
    kept = {key: entry for key, entry in known.items() if key not in changed}
    return kept | {key: entry for key, (_, entry) in changed.items() if entry is not None}


def _as_parquet(entries: Iterable[Entry]) -> bytes:
    table = pyarrow.Table.from_pylist([asdict(entry) for entry in entries], schema=SCHEMA)
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue().to_pybytes()
