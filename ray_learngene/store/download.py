"""Download an artefact to a local folder: resumable, verified, renamed to its final name when it is complete."""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import shutil
import stat
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.local import writable_path
from ray_learngene.io.objects import Objects
from ray_learngene.progress import Progress
from ray_learngene.store.manifest import FileEntry, Manifest

STREAMS = 4
MOST_BEHIND = 16  # pieces of a file, of at most 1 MiB, that have arrived and are not hashed
LOCK = ".pull-lock"
LEFTOVERS = (".partial", ".replaced")  # what a pull that died leaves next to its target

log = logging.getLogger(__name__)


def download(objects: Objects, manifest: Manifest, out: Path, overwrite: bool, without: Collection[str] = ()) -> Path:
    """Download the files of `manifest`, but for some folders, into the local folder `out`.

    They gather in `<out>.partial`, which a later call continues, and which is renamed when every file has the size and
    the SHA-256 of the manifest.

    Returns:
        The absolute path of `out`.

    Raises:
        UserError: `out` exists and may not be replaced, another pull into it runs, a file does not match, or storage or
            disk refuse.
    """
    out = writable_path(out)
    partial, replaced = (out.with_name(f"{out.name}{ending}") for ending in LEFTOVERS)
    with clear_errors(str(out)):
        _check_free(out, manifest, overwrite)
        for folder in (partial, replaced):
            _check_ours(folder, manifest)
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            if replaced.exists() and not os.path.lexists(out):
                (replaced / LOCK).unlink(missing_ok=True)
                os.rename(replaced, out)  # an earlier pull died between the two renames below
                _check_free(out, manifest, overwrite)
            wanted = manifest.without(without)
            _remove_others(partial, wanted)
            _check_space(partial, wanted)
            with Progress(f"pull of {manifest.kind} {manifest.name}", wanted.bytes / 1e6, "MB") as progress:
                progress.at(_bytes_in(partial) / 1e6)
                fetch = functools.partial(_fetch, objects, manifest.base, partial, progress)
                objects.each([functools.partial(fetch, entry) for entry in wanted.files], STREAMS)
            shutil.rmtree(replaced, ignore_errors=True)
            if os.path.lexists(out):
                _check_free(out, manifest, overwrite)  # again: it may have come into being meanwhile
                os.rename(out, replaced)
                (replaced / LOCK).touch()  # from now on it is known to be ours
            (partial / LOCK).unlink()
            os.rename(partial, out)
            shutil.rmtree(replaced, ignore_errors=True)
    return out


def _check_free(out: Path, manifest: Manifest, overwrite: bool) -> None:
    """Refuse to replace anything that is not an earlier pull of such an artefact."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(f"{out} exists: choose another folder, or --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"{out} is not a folder: choose another one")
    others = _others(out, manifest)
    if others:
        raise UserError(
            f"{out} holds files that are not of {manifest.kind} {manifest.name} ({others[0].name}): choose another"
        )


def _check_ours(folder: Path, manifest: Manifest) -> None:
    """Refuse to remove a folder that no pull has left."""
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and in the way of the pull: move it, or choose another folder")
    others = [] if (folder / LOCK).exists() else _others(folder, manifest)
    if others:
        raise UserError(
            f"{folder} is in the way of the pull, and holds files that are not of {manifest.kind} {manifest.name} "
            f"({others[0].name}): move it, or choose another folder"
        )


def _others(folder: Path, manifest: Manifest) -> list[Path]:
    """Return what is below a local folder, but for folders, and is not named by the manifest; links to folders, too."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or not path.is_dir())
        and path != folder / LOCK
        and manifest.entry(path.relative_to(folder).as_posix()) is None
    ]


def _is_own(path: Path) -> bool:
    """Return whether a path is a file or folder by itself: writing there reaches nothing that has another name, too."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)


def _check_space(partial: Path, manifest: Manifest) -> None:
    """Refuse a download that does not fit on the disk."""
    missing, free = manifest.bytes - _bytes_in(partial), shutil.disk_usage(partial).free
    if missing > free:
        raise UserError(
            f"{manifest.kind} {manifest.name} needs {missing / 1e6:,.1f} MB more, and the disk of {partial.parent} has "
            f"{free / 1e6:,.1f} MB left: free space, or choose another folder"
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_others(partial: Path, manifest: Manifest) -> None:
    for path in _others(partial, manifest):
        path.unlink()
    for path in partial.rglob("*"):
        if not _is_own(path):
            path.unlink()


def _fetch(objects: Objects, folder: str, partial: Path, progress: Progress, entry: FileEntry) -> None:
    """Download one file, from where an interrupted pull stopped."""
    source, target = f"{folder}/{entry.path}", partial / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and _complete(objects, source, entry, target, progress):
        return
    # What was there was of another version or damaged here, so only a fresh copy tells whether the store's is sound.
    target.unlink(missing_ok=True)
    if not _complete(objects, source, entry, target, progress):
        target.unlink(missing_ok=True)
        raise UserError(f"{objects.uri_of(source)} does not match its manifest (size or SHA-256): publish it again")


def _complete(objects: Objects, source: str, entry: FileEntry, target: Path, progress: Progress) -> bool:
    """Append what is missing of `target`; whether it is then exactly what the manifest says."""
    with target.open("a+b") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        if file.tell() < entry.bytes or not entry.bytes:
            with ThreadPoolExecutor(1) as hasher:  # a core of its own, while the next bytes arrive
                behind: deque[Future[None]] = deque()
                for chunk in objects.chunks(source, file.tell()):
                    behind.append(hasher.submit(digest.update, chunk))
                    file.write(chunk)
                    progress.advance(len(chunk) / 1e6)
                    if file.tell() > entry.bytes:
                        return False
                    if len(behind) > MOST_BEHIND:
                        behind.popleft().result()
                for each in behind:
                    each.result()
        return file.tell() == entry.bytes and digest.hexdigest() == entry.sha256


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Lock the folder against a second pull; the lock ends with the process, however that ends."""
    with ExitStack() as locked:
        try:
            locked.enter_context(FileLock(partial / LOCK, timeout=0))
        except Timeout:
            raise UserError(f"another pull into {partial} is running: wait for it or choose another folder") from None
        except OSError as error:  # of what is no file in its place too: it is neither followed nor waited for
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            (partial / LOCK).touch()
            log.debug("no lock on %s, so a second pull into it is not noticed: %s", partial, error)
        yield
