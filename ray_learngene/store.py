"""The store: where learngenes, ancestries, descendants and sweeps are kept, in a local folder or below an S3 prefix.

    <store>/<kind>/<name>/manifest.json             what the artefact is; it exists when this does
    <store>/<kind>/<name>/<version>/<files ...>      its files; the version is a hash of them
    <store>/runs/<name>/                            Ray's own state

Object stores have no rename, so the manifest is written last, and only if there is none. A version's folder never
changes: publishing over a name swaps one manifest, and whoever reads sees the old artefact or the new one, whole.
Replaced versions stay where they are, because somebody may be reading them, unless the publisher says otherwise.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.fs
import pyarrow.parquet

from ray_learngene.download import download
from ray_learngene.errors import UserError
from ray_learngene.filesystems import clear_errors
from ray_learngene.manifest import (
    FOLDERS,
    GROUPED,
    FileEntry,
    Kind,
    Manifest,
    check_relative,
    folder_of,
    list_files,
    parse_manifest,
    version_of,
)
from ray_learngene.objects import Objects

__all__ = ["FileEntry", "Kind", "Manifest", "Store"]

MANIFEST = "manifest.json"
UPLOADS = 8


class Store:
    """A store at a URI. Opens nothing before it is used, and pickles as its URI alone.

    Every method raises UserError, in one line, for a name or path that no store can hold, and for whatever the storage
    refuses.
    """

    def __init__(self, uri: str) -> None:
        self.objects = Objects(uri)
        self.uri = self.objects.uri

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return Store, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def check(self, write: bool) -> None:
        """Find out now, before any work is done, whether the store can be read and, if `write`, written.

        A local store that is to be written is created.

        Raises:
            UserError: It cannot; says why and what to set.
        """
        self.objects.check(write)

    def exists(self, kind: Kind, name: str) -> bool:
        """Whether an artefact of this name is there."""
        return self.objects.read(f"{folder_of(kind, name)}/{MANIFEST}") is not None

    def publish(
        self,
        kind: Kind,
        name: str,
        folder: Path,
        metadata: dict[str, Any],
        overwrite: bool = False,
        keep_replaced: bool = True,
    ) -> Manifest:
        """Put every file below a local folder into the store under a name.

        Args:
            kind: What it is.
            name: Its name; "sweep/name" for a descendant.
            folder: The local folder.
            metadata: What the manifest shall say about it; plain JSON values.
            overwrite: Replace what has that name already.
            keep_replaced: Leave the files of what was replaced, which somebody may be reading; else delete them.

        Raises:
            UserError: The name is taken, or another publisher took it meanwhile, or the folder cannot be published.
        """
        base = folder_of(kind, name)
        taken = f"the name {name!r} is already taken in {self.uri}: choose another {kind} name, or --overwrite"
        files = list_files(folder)
        created = datetime.now(UTC).isoformat()
        manifest = Manifest(
            kind=kind, name=name, version=version_of(files), created=created, files=files, metadata=metadata
        )
        if not overwrite and self.exists(kind, name):
            raise UserError(taken)
        before = self.objects.find(base) if overwrite and not keep_replaced else []

        paths = {entry.path: f"{base}/{manifest.version}/{entry.path}" for entry in files}
        with ThreadPoolExecutor(UPLOADS) as pool:
            for done in [pool.submit(self.objects.upload, folder / path, paths[path]) for path in paths]:
                done.result()
        text = manifest.model_dump_json(indent=2).encode()
        if overwrite:
            self.objects.put(f"{base}/{MANIFEST}", text)
        elif not self.objects.create(f"{base}/{MANIFEST}", text):
            winner = self.manifest(kind, name)
            # The same to the microsecond is this one: the server took it, its answer was lost, the request repeated.
            if winner != manifest:
                if winner.version != manifest.version:
                    for path in paths.values():
                        self.objects.delete(path)
                raise UserError(taken)
        for path in before:
            if path not in paths.values() and path != f"{base}/{MANIFEST}":
                self.objects.delete(path)
        return manifest

    def remove(self, kind: Kind, name: str) -> None:
        """Delete an artefact, its manifest first, so that nobody ever sees a part of it."""
        base = folder_of(kind, name)
        found = self.objects.find(base)
        for path in sorted(found, key=lambda path: path != f"{base}/{MANIFEST}"):
            self.objects.delete(path)

    def remove_tree(self, path: str) -> None:
        """Delete every object below a path of the store, such as the state of a run."""
        for found in self.objects.find(check_path(path)):
            self.objects.delete(found)

    def manifest(self, kind: Kind, name: str) -> Manifest:
        """What the store knows about an artefact.

        Raises:
            UserError: There is none of this name (says which names are near), or its manifest is not to be trusted.
        """
        path = f"{folder_of(kind, name)}/{MANIFEST}"
        text = self.objects.read(path)
        if text is None:
            names = self._names(kind)
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
            hint = f"there is {', '.join(near)}" if near else f"there is no {kind} at all"
            raise UserError(f"no {kind} {name!r} in {self.uri}: {hint}")
        return parse_manifest(text, self.objects.uri_of(path), kind, name)

    def manifests(self, kind: Kind, under: str = "") -> list[Manifest]:
        """The manifests of all artefacts of a kind, sorted by name; of descendants, those of the sweep `under` only."""
        names = self._names(kind, under)
        paths = [f"{FOLDERS[kind]}/{name}/{MANIFEST}" for name in names]
        found = zip(names, paths, self.objects.read_many(paths), strict=True)
        return [parse_manifest(text, self.objects.uri_of(path), kind, name) for name, path, text in found if text]

    def _names(self, kind: Kind, under: str = "") -> list[str]:
        """The names of all artefacts of a kind."""
        root = FOLDERS[kind]
        folder = f"{root}/{check_path(under)}" if under else root
        tail = f"/{MANIFEST}"
        slashes = 2 if kind in GROUPED else 1
        paths = [path.removeprefix(f"{root}/") for path in self.objects.find(folder)]
        return [path.removesuffix(tail) for path in paths if path.endswith(tail) and path.count("/") == slashes]

    def download(self, kind: Kind, name: str, out: Path, overwrite: bool = False) -> Path:
        """Bring an artefact to the local folder `out` and return its absolute path.

        An interrupted download continues where it stopped; `out` appears only when every file is there and verified.

        Raises:
            UserError: There is no such artefact, `out` exists and may not be replaced, or a file does not match its
                hash.
        """
        manifest = self.manifest(kind, name)
        return download(self.objects, f"{folder_of(kind, name)}/{manifest.version}", manifest, out, overwrite)

    def read_bytes(self, kind: Kind, name: str, path: str) -> bytes:
        """One file of an artefact, verified.

        Raises:
            UserError: There is no such artefact or file, or the file does not match its hash.
        """
        manifest = self.manifest(kind, name)
        entry = manifest.entry(path)
        if entry is None:
            paths = ", ".join(entry.path for entry in manifest.files)
            raise UserError(f"{kind} {name!r} in {self.uri} has no file {path!r}: it has {paths}")
        source = f"{folder_of(kind, name)}/{manifest.version}/{path}"
        data = self.objects.read(source)
        if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            fault = "is missing" if data is None else "does not match its SHA-256"
            raise UserError(f"{self.objects.uri_of(source)} {fault}: publish it again")
        return data

    def sweeps(self) -> list[str]:
        """The names of all sweeps."""
        paths = [path.split("/") for path in self.objects.find("sweeps")]
        return [parts[1] for parts in paths if len(parts) == 3 and parts[2] == "sweep.json"]

    def write_table(self, path: str, table: pyarrow.Table) -> None:
        """Write a table as Parquet to a path below the store, replacing as a whole what was there."""
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, buffer)
        self.objects.put(check_path(path), buffer.getvalue())

    def read_table(self, path: str) -> pyarrow.Table:
        """Read the Parquet table at a path below the store.

        Raises:
            UserError: There is none, or it is not Parquet.
        """
        data = self.objects.read(check_path(path))
        if data is None:
            raise UserError(f"there is no table {self.objects.uri_of(path)}: check the name")
        with clear_errors(self.objects.uri_of(path)):
            return pyarrow.parquet.read_table(io.BytesIO(data))

    def has(self, path: str) -> bool:
        """Whether there is something at a path below the store."""
        return self.objects.read(check_path(path)) is not None

    def write_text(self, path: str, text: str) -> None:
        """Write a text to a path below the store, replacing as a whole what was there."""
        self.objects.put(check_path(path), text.encode())

    def create_text(self, path: str, text: str) -> bool:
        """Write a text to a path below the store if nothing is there; False where something is."""
        return self.objects.create(check_path(path), text.encode())

    def read_text(self, path: str) -> str | None:
        """The text at a path below the store, None where there is none."""
        data = self.objects.read(check_path(path))
        return None if data is None else data.decode()

    def ray_storage(self, name: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
        """`storage_path` and `storage_filesystem` of Ray's RunConfig for the run `name`, kept in runs/<name>."""
        folder_of("learngene", name)  # the same rule for names
        runs = self.objects.full("runs")
        return runs, None if self.objects.is_local else self.objects.bytes_fs


def check_path(path: str) -> str:
    """Return a path if it stays below the store's root, else raise UserError."""
    try:
        return check_relative(path)
    except ValueError as error:
        raise UserError(f"{error}: write folder/file, below the store") from error
