"""The store: where learngenes, ancestries, descendants and sweeps are kept, in a local folder or in a bucket.

    <store>/<kind>/<name>/manifest.json             what the artefact is; it exists when this does
    <store>/<kind>/<name>/<folder>/<files ...>      its files; every publisher writes into a folder of its own
    <store>/index/                                  what `list` and `pull` ask (see index.py)
    <store>/runs/<name>/                            Ray's own state

Object stores have no rename, so the manifest is written last, and only if there is none. A folder of files never
changes: publishing over a name replaces one manifest, and readers see the old artefact or the new one, whole. Replaced
files stay until `learngene gc` removes them, because other processes may read them, or a publisher deletes them.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.fs
import pyarrow.parquet

from ray_learngene.config import StoreConfig
from ray_learngene.config.base import address
from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable
from ray_learngene.io.objects import Objects
from ray_learngene.io.ray_filesystems import ray_filesystem, require_agreement
from ray_learngene.io.retry import RETRY_SECONDS
from ray_learngene.store.download import download
from ray_learngene.store.files import StoreFiles, check_path
from ray_learngene.store.index import KINDS, Entry, Index
from ray_learngene.store.manifest import (
    FOLDERS,
    MANIFEST,
    MOST_BYTES,
    FileEntry,
    Kind,
    Manifest,
    folder_of,
    parse_manifest,
)
from ray_learngene.store.publish import NameTaken, Publication
from ray_learngene.store.rows import usable
from ray_learngene.store.whole import Listing, broken_text, missing_file

__all__ = ["Entry", "FileEntry", "Kind", "Manifest", "NameTaken", "Store"]

log = logging.getLogger(__name__)


class Store(StoreFiles):
    """A store at a URI. It connects when it is first used, and pickles as its URI.

    Requests that fail are retried for at most `retry_seconds` in one operation. Every method raises UserError, in one
    line, for an impossible name or path and for errors of the storage.
    """

    def __init__(self, uri: str | os.PathLike[str], retry_seconds: float = RETRY_SECONDS) -> None:
        try:
            where = address(os.fspath(uri))
        except (TypeError, ValueError) as error:
            raise UserError(f"store {uri!r}: {error}") from None
        self.objects = Objects(where, retry_seconds)
        self.uri = self.objects.uri
        self.index = Index(self.objects)

    @classmethod
    def of(cls, config: StoreConfig) -> Store:
        """Open the store of a command, once; the command hands it down."""
        return cls(config.store, config.store_patience)

    @property
    def patience(self) -> float:
        """Seconds for which a server that stops answering is waited for, in one operation."""
        return self.objects.retry.seconds

    def __reduce__(self) -> tuple[Callable[[str, float], Store], tuple[str, float]]:
        return Store, (self.uri, self.objects.retry.seconds)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def check(self, write: bool) -> None:
        """Check before any work that the store can be read and with `write` written.

        A server that does not answer is not asked again; one that says it is overloaded is. A local store need not be
        there to be written.

        Raises:
            UserError: It cannot; says why and what to set.
        """
        self.objects.check(write)

    def exists(self, kind: Kind, name: str) -> bool:
        """Check whether an artefact exists with all its files. A broken one is logged, so that it is made again."""
        try:
            manifest = self.look_up(kind, name)
        except Unavailable:
            raise
        except UserError:  # its manifest is not to be trusted; those who read it are told
            return self.has(f"{folder_of(kind, name)}/{MANIFEST}")
        missing = manifest and missing_file(self.objects, manifest.base, manifest.files)
        if missing:
            log.warning("%s (%s)", broken_text(kind, name, self.uri), missing)
        return manifest is not None and not missing

    def publish(
        self,
        kind: Kind,
        name: str,
        folder: Path,
        metadata: dict[str, Any],
        overwrite: bool = False,
        keep_replaced: bool = True,
    ) -> Manifest:
        """Publish every file below a local folder under a name.

        Args:
            kind: What it is.
            name: Its name; "sweep/name" for a descendant.
            folder: The local folder.
            metadata: What the manifest shall say about it; plain JSON values.
            overwrite: Replace what has that name already.
            keep_replaced: Keep the files of the replaced artefact, because other processes may read them; else delete
                them.

        Raises:
            NameTaken: By an artefact that was there, or by another publisher meanwhile.
            UserError: The folder cannot be published, or the storage refuses.
        """
        publication = Publication(self.objects, self.index, kind, name)
        if not overwrite and self.exists(kind, name):
            raise publication.taken()
        replaced = None
        if not keep_replaced:
            with suppress(UserError):  # what cannot be read is left to `gc`
                replaced = self.look_up(kind, name)
        manifest = publication.publish(folder, metadata, overwrite)
        if replaced:
            self.objects.delete_many(f"{replaced.base}/{entry.path}" for entry in replaced.files)
        return manifest

    def remove(self, kind: Kind, name: str) -> None:
        """Delete an artefact, its manifest first, so that readers never see a part of it.

        Other files below its name stay: they belong to a running publisher, or to one that died (`gc` finds them).
        """
        path = f"{folder_of(kind, name)}/{MANIFEST}"
        text = self._text(kind, name)
        if text is None:
            return
        files: list[str] = []
        with suppress(UserError):  # a manifest that is not to be trusted names no files
            manifest = parse_manifest(text, self.objects.uri_of(path), kind, name)
            files = [f"{manifest.base}/{entry.path}" for entry in manifest.files]
        self.index.note(kind, name, None)
        self.objects.delete(path)
        self.objects.delete_many(files)

    def manifest(self, kind: Kind, name: str) -> Manifest:
        """Return what the store knows about an artefact.

        Raises:
            UserError: There is none of this name (says which names are near), or its manifest is not to be trusted.
        """
        found = self.look_up(kind, name)
        if found is None:
            names = self._names(kind)
            group = [one for one in names if one.startswith(f"{name.partition('/')[0]}/")]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or (group or names)[:3]
            hint = f"there is {', '.join(near)}" if near else f"there is no {kind} at all"
            raise UserError(f"no {kind} {name!r} in {self.uri}: {hint}")
        return found

    def look_up(self, kind: Kind, name: str) -> Manifest | None:
        """Return the manifest of an artefact, or None.

        Raises:
            UserError: Its manifest is not to be trusted.
        """
        text = self._text(kind, name)
        uri = self.objects.uri_of(f"{folder_of(kind, name)}/{MANIFEST}")
        return None if text is None else parse_manifest(text, uri, kind, name)

    def _text(self, kind: Kind, name: str) -> bytes | None:
        return self.objects.read(f"{folder_of(kind, name)}/{MANIFEST}", MOST_BYTES)

    def _names(self, kind: Kind, under: str = "") -> list[str]:
        """Return the names of all artefacts of a kind, as the storage lists them."""
        return self.index.names(kind, check_path(under) if under else "")

    def manifests(self, kind: Kind, under: str = "") -> list[Manifest]:
        """Return the manifests of all artefacts of a kind, sorted by name.

        Of descendants, those of the sweep `under` only.

        A manifest that is not to be trusted is left out, with a warning.
        """
        names = self._names(kind, under)
        paths = [f"{folder_of(kind, name)}/{MANIFEST}" for name in names]
        manifests = []
        for name, path, text in zip(names, paths, self.objects.read_many(paths, MOST_BYTES), strict=True):
            try:
                if text:
                    manifests.append(parse_manifest(text, self.objects.uri_of(path), kind, name))
            except UserError as error:
                log.warning("left out: %s", error)
        return manifests

    def entries(self, kinds: Sequence[Kind] = KINDS, under: str = "") -> list[Entry]:
        """Return what the index knows of all artefacts of some kinds, sorted.

        Of descendants, those of the sweep `under` only.

        It takes as many requests for ten thousand artefacts as for ten. What was copied into a bucket or deleted there
        by hand is not seen before `index.rebuild`.
        """
        order = {kind: position for position, kind in enumerate(kinds)}
        known = self.index.entries(kinds)
        if self.objects.is_local:  # where looking costs little
            there = {(kind, name) for kind in kinds for name in self._names(kind)}
            known = self.index.completed(known, there)
        found = [entry for entry in known.values() if entry.kind in order]
        found = [entry for entry in found if not under or entry.name.startswith(f"{under}/")]
        return sorted(found, key=lambda entry: (order[entry.kind], entry.name))

    def rows(self, sweep: str) -> list[dict[str, Any]]:
        """Return the rows of the results table of all descendants of a sweep that are there, sorted by name."""
        return [entry.facts for entry in self.finished(sweep)]

    def finished(self, sweep: str) -> list[Entry]:
        """Return all descendants of a sweep that are there with a row of the results table, sorted by name."""
        listing = Listing(self.objects, "descendant", sweep)
        if not listing.names:
            return []
        known = self.index.of({("descendant", name) for name in listing.names})
        for broken in listing.broken(known.values()):
            log.warning("%s", broken_text(broken.kind, broken.name, self.uri))
            del known[broken.kind, broken.name]
        entries = (entry for _, entry in sorted(known.items()))
        return [entry for entry in entries if usable(entry.facts, f"{FOLDERS['descendant']}/{entry.name}")]

    def broken(self) -> list[Entry]:
        """Return the artefacts that `entries` knows and whose files are not all there."""
        entries = self.entries()
        return [
            broken
            for kind in KINDS
            for broken in Listing(self.objects, kind).broken(entry for entry in entries if entry.kind == kind)
        ]

    def download(
        self,
        kind: Kind,
        name: str,
        out: Path,
        overwrite: bool = False,
        part: str | None = None,
        without: Collection[str] = (),
    ) -> Path:
        """Bring an artefact to the local folder `out` and return its absolute path.

        Args:
            part: A folder of the artefact that is wanted alone.
            without: Folders of the artefact that are not wanted.

        An interrupted download continues where it stopped; `out` appears only when every file is there and verified.

        Raises:
            UserError: There is no such artefact, `out` exists and may not be replaced, or a file does not match its
                hash.
        """
        manifest = self.manifest(kind, name)
        if part:
            below = manifest.below(part)
            if below is None:
                raise UserError(f"{kind} {name!r} in {self.uri} has no folder {part!r}")
            manifest = below
        return download(self.objects, manifest, out, overwrite, without)

    def read_bytes(self, kind: Kind, name: str, path: str) -> bytes:
        """Return one file of an artefact, verified; see `read_file` for several of one version.

        Raises:
            UserError: There is no such artefact or file, or the file does not match its hash.
        """
        return self.read_file(self.manifest(kind, name), path)

    def read_file(self, manifest: Manifest, path: str) -> bytes:
        """Return one file of the version of an artefact that a manifest describes, verified.

        Raises:
            UserError: There is no such file, or it does not match its hash.
        """
        kind, name = manifest.kind, manifest.name
        entry = manifest.entry(path)
        if entry is None:
            paths = ", ".join(entry.path for entry in manifest.files)
            raise UserError(f"{kind} {name!r} in {self.uri} has no file {path!r}: it has {paths}")
        source = f"{manifest.base}/{path}"
        data = self.objects.read(source, max(entry.bytes, MOST_BYTES))
        if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            fault = "is missing" if data is None else "does not match its SHA-256"
            raise UserError(f"{self.objects.uri_of(source)} {fault}: publish it again")
        return data

    def sweeps(self) -> list[str]:
        """Return the names of all sweeps."""
        paths = [path.split("/") for path in self.objects.find("sweeps")]
        return [parts[1] for parts in paths if len(parts) == 3 and parts[2] == "sweep.json"]

    def ray_storage(self, name: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
        """Return `storage_path` and `storage_filesystem` of Ray's RunConfig for the run `name`, kept in runs/<name>."""
        folder_of("learngene", name)  # the same rule for names
        if self.objects.is_local:
            return self.objects.full("runs"), None
        self.objects.open()
        storage, path = ray_filesystem(self.uri, self.objects.retry.seconds)
        require_agreement(self.uri, storage, path)
        return f"{path}/runs", storage
