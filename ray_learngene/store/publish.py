"""Publish a folder: files first, the manifest last. Files that may belong to an artefact are never deleted.

A manifest may be written although its request failed: the answer was lost, or the request arrives late. So after an
error the manifest in the store decides. If it is this one, the artefact is published. If it is another publisher's,
these files are deleted. Otherwise they stay for `learngene gc`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.objects import Objects
from ray_learngene.progress import Progress
from ray_learngene.store.index import Index
from ray_learngene.store.manifest import (
    FORMAT,
    MANIFEST,
    MOST_BYTES,
    FileEntry,
    Kind,
    Manifest,
    file_entry,
    folder_of,
    list_files,
    parse_manifest,
    version_of,
)
from ray_learngene.store.whole import missing_file

UPLOADS = 8

log = logging.getLogger(__name__)


class NameTaken(UserError):
    """An artefact of this name is there already."""


class Publication:
    """The publication of one artefact; its files lie in a folder of their own."""

    def __init__(self, objects: Objects, index: Index, kind: Kind, name: str) -> None:
        self.objects, self.index, self.kind, self.name = objects, index, kind, name
        self.created = datetime.now(UTC)
        self.folder = f"{self.created:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.target = f"{folder_of(kind, name)}/{self.folder}"
        self.path = f"{folder_of(kind, name)}/{MANIFEST}"

    def taken(self) -> NameTaken:
        return NameTaken(
            f"the name {self.name!r} is already taken in {self.objects.uri}: choose another {self.kind} name, "
            "or --overwrite"
        )

    def publish(self, folder: Path, metadata: dict[str, Any], overwrite: bool) -> Manifest:
        """See `Store.publish`."""
        paths = list_files(folder)
        note = None
        try:
            files = self._upload(folder, paths)
            manifest = Manifest(
                format=FORMAT,
                kind=self.kind,
                name=self.name,
                version=version_of(files),
                folder=self.folder,
                created=self.created.isoformat(),
                files=files,
                metadata=metadata,
            )
            text = manifest.model_dump_json(indent=2).encode()
            note = self.index.note(self.kind, self.name, text)
        except (UserError, OSError, ValueError):  # the last: metadata that are no JSON
            self._take_back(paths, note)
            raise
        try:
            published = self._write_manifest(text, overwrite)
        except UserError:
            log.warning(
                "it is not known whether %s %s is published: its files stay in %s", self.kind, self.name, self.target
            )
            raise
        if not published:
            self._take_back(paths, note)
            raise self.taken()
        return manifest

    def _upload(self, folder: Path, paths: Sequence[str]) -> list[FileEntry]:
        """Upload files, hash them meanwhile, and check that all have arrived."""
        total = sum(_bytes(folder / path) for path in paths)
        progress = Progress(f"upload of {self.kind} {self.name}", total / 1e6, "MB")
        with progress, ThreadPoolExecutor() as pool:

            def upload(path: str) -> None:
                self.objects.upload(folder / path, f"{self.target}/{path}", lambda size: progress.advance(size / 1e6))

            hashed = pool.map(partial(file_entry, folder), paths)
            uploads = (partial(upload, path) for path in paths)
            self.objects.each(uploads, UPLOADS)
            entries = list(hashed)
        if (missing := missing_file(self.objects, self.target, entries)) is not None:
            raise UserError(f"{self.objects.uri_of(f'{self.target}/{missing}')} did not arrive whole: publish again")
        return entries

    def _write_manifest(self, text: bytes, overwrite: bool) -> bool:
        """Write the manifest; return False if another publisher's is there.

        Raises:
            UserError: What is there does not show whether it was or will be written.
        """
        failed: UserError | None = None
        try:
            if overwrite:
                self.objects.put(self.path, text)
                return True
            if self.objects.create(self.path, text):
                return True
        except UserError as error:
            failed = error
        try:
            there = self.objects.read(self.path, MOST_BYTES)
        except UserError as error:
            raise failed or error from None
        if there == text:
            return True
        if failed and (there is None or overwrite or not self.objects.creates_once):
            raise failed
        if there is None:
            raise UserError(f"{self.objects.uri_of(self.path)} comes and goes: run the command again")
        if self._broken(there):
            return self._write_manifest(text, overwrite=True)
        return False

    def _broken(self, text: bytes) -> bool:
        try:
            manifest = parse_manifest(text, self.objects.uri_of(self.path), self.kind, self.name)
        except UserError:
            return False  # those who read it are told
        return missing_file(self.objects, manifest.base, manifest.files) is not None

    def _take_back(self, paths: Sequence[str], note: str | None) -> None:
        """Delete, as far as possible, the files of an artefact that will never exist."""
        with suppress(UserError):
            self.objects.delete_many(f"{self.target}/{path}" for path in paths)
            if note:
                self.objects.delete(note)


def _bytes(path: Path) -> int:
    with clear_errors(str(path)):
        return path.stat().st_size
