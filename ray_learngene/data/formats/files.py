"""The image files below a folder, and what is there besides."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".jp2"),
)
# Folders and files of file systems and programs, and the card of a set (card.py), which are no images of it.
_SYSTEM = {
    *("@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found", "__macosx", "system volume information"),
    *("thumbs.db", "desktop.ini", "__pycache__", "readme.md"),
}
_NAMED = 5
LOOP = "links to a folder around them"


def is_system(name: str) -> bool:
    """Return whether a file or folder is hidden or was put there by a file system or a program."""
    return name.startswith(".") or name.lower() in _SYSTEM


def left_out(name: str) -> bool:
    """Return whether a file or folder of tables is hidden, as Spark's `_SUCCESS` is."""
    return name.startswith("_") or is_system(name)


@dataclass
class Files:
    """The images below a folder by sorted relative name, and how many files of each ending are not read."""

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave(self, kind: str, name: str) -> None:
        """Count a file that is not read."""
        self.others[kind] += 1
        self.examples.setdefault(kind, name)


def subfolders(folder: str) -> list[str]:
    """Return the sorted names of the folders in a folder, but for those of systems and links to folders around it."""
    with os.scandir(folder) as entries:
        inner = [entry for entry in entries if not is_system(entry.name) and entry.is_dir()]
    return sorted(entry.name for entry in inner if not _leads_back(entry, (os.path.realpath(folder),)))


def find_images(folder: str) -> Files:
    """Return all images below a folder, whatever links lead to them."""
    files = Files()
    for entry, name in walk(folder):
        if entry.is_dir():
            files.leave(LOOP, name)
        elif not entry.is_file() and os.path.exists(entry.path):  # a link to nothing is an unreadable image
            files.leave("pipes or devices", name)
        elif entry.name.lower().endswith(EXTENSIONS):
            files.images.append(name)
        else:
            files.leave(os.path.splitext(entry.name)[1].lower() or "without ending", name)
    files.images.sort()
    return files


def walk(folder: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    """All that is below a folder, but folders, with its relative name.

    A link to a folder that it is in is not followed: it is yielded itself.
    """
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, ())]  # and the real folders that links led out of
    while waiting:
        place, around = waiting.pop()
        for entry, name in _entries(place, folder):
            chain = (*around, os.path.realpath(place)) if entry.is_symlink() else around
            if entry.is_dir() and not _leads_back(entry, chain):
                waiting.append((entry.path, chain))
            else:
                yield entry, name


def _entries(place: str, folder: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    with os.scandir(place) as entries:
        for entry in entries:
            if not is_system(entry.name):
                yield entry, os.path.relpath(entry.path, folder)


def _leads_back(entry: os.DirEntry[str], around: tuple[str, ...]) -> bool:
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return any(f"{each}/".startswith(f"{target.rstrip('/')}/") for each in around)


def not_read(others: Mapping[str, int], examples: Mapping[str, str], folder: str) -> str | None:
    """Return one line about files that are no images; None where there are none."""
    if not others:
        return None
    kinds = sorted(others, key=lambda kind: (-others[kind], kind))
    named = ", ".join(f"{others[kind]:,} {kind} ({examples[kind]})" for kind in kinds[:_NAMED])
    more = f", and {len(kinds) - _NAMED} kinds more" if len(kinds) > _NAMED else ""
    return f"not read in {folder}: {named}{more}"
