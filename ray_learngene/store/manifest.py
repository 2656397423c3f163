"""The name and the files of an artefact in a store.

Everything read from a store is checked here first: no path leads outside its folder, and no pickle can be named.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_learngene.config.documents import first_error
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors

MANIFEST = "manifest.json"
FORMAT = 2  # 1: the files lay in a folder named like the version, which two publishers of the same files shared
MOST_BYTES = 64 * 2**20  # of a manifest; a learngene's, with the history of its distillation, has some thousand
Kind = Literal["learngene", "ancestry", "descendant", "checkpoint", "softlabels", "timing"]
FOLDERS: dict[str, str] = dict(
    zip(
        get_args(Kind), ("learngenes", "ancestries", "descendants", "checkpoints", "softlabels", "timings"), strict=True
    )
)
KIND_OF: dict[str, Kind] = {folder: kind for kind, folder in FOLDERS.items()}  # type: ignore[misc]
GROUPED = ("descendant", "checkpoint", "softlabels", "timing")  # "sweep/name", "run/name", "key/part", "device/name"
LONGEST_NAME = 128
NAME = re.compile(rf"[a-zA-Z0-9][a-zA-Z0-9._-]{{0,{LONGEST_NAME - 1}}}")
LEGAL = f"in letters, digits, '.', '_' and '-', beginning with a letter or digit, at most {LONGEST_NAME} characters"
LONGEST_JSON = 256 * 2**20  # bytes; what reads a text reads it whole
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")


def check_relative(path: str) -> str:
    """Return `path` if it is relative and stays below its root.

    Raises:
        ValueError: It is empty, absolute, has a drive, a backslash or a control character, or a part "", "." or "..".
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f\x7f]", path):
        raise ValueError(f"{path!r} is not a plain relative path")
    return path


class ListedFile(BaseModel):
    """A file that a store may hold, by name and size."""

    model_config = ConfigDict(frozen=True)

    path: str
    bytes: int = Field(ge=0, lt=2**53)

    @field_validator("path")
    @classmethod
    def _harmless(cls, path: str) -> str:
        if path.lower().endswith(PICKLES):
            raise ValueError(f"{path!r} may be a pickle, and a store holds none: use safetensors")
        return check_relative(path)

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.path.endswith(".json") and self.bytes > LONGEST_JSON:
            raise ValueError(f"{self.path!r} has {self.bytes:,} bytes, more than any description has")
        return self


class FileEntry(ListedFile):
    """One file of an artefact."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """An artefact exists if its manifest does, and consists of exactly these files."""

    model_config = ConfigDict(frozen=True)

    format: int = Field(1, ge=1)
    kind: Kind
    name: str
    version: str = Field(description="a hash of the files")
    folder: str = Field("", description="where the files lie, next to the manifest; no other publisher writes there")
    created: str = Field(description="ISO 8601, UTC")
    files: list[FileEntry] = Field(min_length=1)
    metadata: dict[str, Any]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        paths = [entry.path for entry in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is listed twice")
        if self.version != version_of(self.files):
            raise ValueError("version does not match the files")
        if self.folder and not NAME.fullmatch(self.folder):
            raise ValueError(f"folder: {self.folder!r} is not the name of a folder")
        return self

    @property
    def base(self) -> str:
        """The folder of the files, below the store's root."""
        return f"{folder_of(self.kind, self.name)}/{self.folder or self.version}"

    @property
    def bytes(self) -> int:
        """The bytes of all files."""
        return sum(entry.bytes for entry in self.files)

    def below(self, part: str) -> Manifest | None:
        """Return the manifest of one folder of the artefact, with its files at the top.

        None if there is no such folder.
        """
        files = [entry for entry in self.files if entry.path.startswith(f"{part}/")]
        if not files:
            return None
        stripped = [entry.model_copy(update={"path": entry.path.removeprefix(f"{part}/")}) for entry in files]
        return self.model_copy(update={"files": stripped, "folder": f"{self.folder or self.version}/{part}"})

    def without(self, parts: Collection[str]) -> Manifest:
        """Return the manifest without the files of some folders."""
        kept = [entry for entry in self.files if entry.path.partition("/")[0] not in parts or "/" not in entry.path]
        return self.model_copy(update={"files": kept})

    def entry(self, path: str) -> FileEntry | None:
        """Return the entry of one file, None where the artefact has no such file."""
        return next((entry for entry in self.files if entry.path == path), None)


def version_of(files: list[FileEntry]) -> str:
    """Twelve hex digits that are the same for the same files only."""
    lines = sorted(f"{entry.path}\t{entry.bytes}\t{entry.sha256}\n" for entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def file_entry(folder: Path, path: str) -> FileEntry:
    """Return the entry of a file below a local folder.

    Raises:
        UserError: It cannot be read.
    """
    with clear_errors(str(folder / path)), (folder / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(path=path, bytes=file.tell(), sha256=digest)


def list_files(folder: Path) -> list[str]:
    """Return the path of every file below a local folder, sorted.

    Raises:
        UserError: There is no such folder, it is empty, or it holds a file that no store may hold.
    """
    if not folder.is_dir():
        raise UserError(f"cannot publish {folder}: it is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise UserError(f"cannot publish {folder}: it holds no files")
    try:
        listed = [ListedFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size) for path in paths]
    except ValidationError as error:
        raise UserError(f"cannot publish {folder}: {first_error(error)}") from error
    return [file.path for file in listed]


def parse_manifest(text: bytes, uri: str, kind: str, name: str) -> Manifest:
    """Read the manifest found at `uri`, where that of `name` belongs.

    Raises:
        UserError: It is damaged, hostile, of another artefact, or of a later format.
    """
    try:
        manifest = Manifest.model_validate_json(text)
        found = manifest.format
    except ValidationError as error:
        found = _format_of(text)
        if found <= FORMAT:
            reason = f"{first_error(error)}; publish again with --overwrite"
            raise UserError(f"the manifest {uri} is not usable: {reason}") from error
    if found > FORMAT:
        raise UserError(f"the manifest {uri} was written by a later version (format {found}): upgrade this one")
    if (manifest.kind, manifest.name) != (kind, name):
        raise UserError(
            f"the manifest {uri} is that of {manifest.kind} {manifest.name!r}: publish again with --overwrite"
        )
    return manifest


class _Format(BaseModel):
    """What every manifest says of itself, in whatever format."""

    format: int = 1


def _format_of(text: bytes) -> int:
    try:
        return _Format.model_validate_json(text).format
    except ValidationError:
        return FORMAT


def folder_of(kind: Kind, name: str) -> str:
    """Return where an artefact lies below the store's root.

    Raises:
        UserError: The name is not one that every store can hold.
    """
    parts = name.split("/")
    wanted = 2 if kind in GROUPED else 1
    if len(parts) != wanted or not all(NAME.fullmatch(part) for part in parts):
        form = "SWEEP/NAME" if kind == "descendant" else "GROUP/NAME" if kind in GROUPED else "NAME"
        article = "an" if kind.startswith("a") else "a"
        raise UserError(f"{name!r} is not the name of {article} {kind}: write {form} {LEGAL}")
    return f"{FOLDERS[kind]}/{name}"


def parse_artefact(text: str) -> tuple[str, str]:
    """Read `learngenes/x`, or `sweeps/y`, as (folder, name).

    Raises:
        UserError: the text does not begin with a folder of the store.
    """
    folder, _, name = text.strip("/").partition("/")
    folders = [*KIND_OF.keys() - {"checkpoints"}, "sweeps"]
    if folder not in folders or not name:
        raise UserError(f"{text!r}: write KIND/NAME, with KIND one of {', '.join(sorted(folders))}")
    return folder, name


def run_name(kind: Kind, name: str) -> str:
    """Return the name of an artefact's run: the folder of its checkpoints and of Ray's state.

    Raises:
        UserError: the artefact's name, or the longer one of its run, is not one that every store can hold.
    """
    folder_of(kind, name)
    run = f"{kind}-{name}"
    if len(run) > LONGEST_NAME:
        raise UserError(
            f"{name!r} is too long a name for the {kind}: at most {LONGEST_NAME - len(kind) - 1} characters"
        )
    return run


def shortened(name: str) -> str:
    """Shorten a name that is too long: a hash replaces its end."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
