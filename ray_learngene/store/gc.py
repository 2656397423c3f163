"""Find what a store no longer needs, and delete it.

What changed less than `--min-age` ago stays, because other processes may publish or read it. The age of a replaced
artefact's files counts from their replacement. Publishers write into folders of their own, so an older folder that no
manifest names never becomes part of an artefact. The least age is an hour, unless `--force` says that none publishes.
"""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from filelock import FileLock

from ray_learngene.config import GcConfig
from ray_learngene.config.store import PUBLISHING
from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable, clear_errors
from ray_learngene.io.objects import PROBES, TEMPORARY, Found, IncompleteUpload
from ray_learngene.store.download import LEFTOVERS, LOCK
from ray_learngene.store.manifest import FOLDERS, GROUPED, MANIFEST, Kind
from ray_learngene.store.store import Store
from ray_learngene.store.whole import broken_text

# A run's driver writes a last state after its artefact is published; one that goes on for longer is another run.
LAST_WORDS = timedelta(hours=1)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Garbage:
    """Something that the store no longer needs."""

    what: str
    path: str
    bytes: int
    changed: datetime
    delete: Callable[[], None]
    still: Callable[[], bool] = lambda: True  # asked again right before it is deleted


def garbage_of(store: Store, config: GcConfig) -> list[Garbage]:
    """Return what the store and the folder of downloads no longer need.

    Raises:
        UserError: The store cannot be read.
    """
    store.check(write=False)
    for entry in store.broken():
        log.warning(broken_text(entry.kind, entry.name, store.uri))
    before = datetime.now(UTC) - config.age
    if config.age == PUBLISHING and config.min_age not in ("1h", "60m"):
        log.info(f"--min-age {config.min_age} counts as 1h: a publisher may be at work (--force if none is)")
    return [*find_garbage(store, before), *_downloads(config.downloads, before)]


def delete(garbage: Iterable[Garbage]) -> list[Garbage]:
    """Delete what is still not needed, and return it."""
    deleted = [one for one in garbage if one.still()]
    for one in deleted:
        one.delete()
    return deleted


def find_garbage(store: Store, before: datetime) -> Iterator[Garbage]:
    """Yield what the store no longer needs and has not changed since `before`."""
    everything = store.objects.look("")
    yield from _temporary(store, everything, before)
    for kind in FOLDERS:
        yield from _unnamed(store, kind, everything, before)  # type: ignore[arg-type]
    yield from _finished(store, everything, before)
    for upload in _incomplete_uploads(store):
        if upload.begun < before:
            give_up = partial(store.objects.give_up_upload, upload)
            yield Garbage("incomplete upload", upload.path, 0, upload.begun, give_up)


def _incomplete_uploads(store: Store) -> list[IncompleteUpload]:
    try:
        return store.objects.incomplete_uploads()
    except Unavailable:
        raise
    except UserError as error:  # no permission (s3:ListBucketMultipartUploads), or a server that does not know of them
        log.warning("incomplete uploads are not looked for: %s", error)
        return []


def _temporary(store: Store, everything: Iterable[Found], before: datetime) -> Iterator[Garbage]:
    for one in everything:
        name = one.path.rpartition("/")[2]
        temporary = name.startswith(".") and name.endswith(TEMPORARY)
        if (temporary or one.path.startswith(PROBES)) and one.modified < before:
            yield _of("temporary file", one.path, [one], partial(store.objects.delete, one.path))


def _unnamed(store: Store, kind: Kind, everything: Iterable[Found], before: datetime) -> Iterator[Garbage]:
    """Yield the folders of files that no manifest names: of replaced artefacts, and of publishers that died."""
    depth = 2 if kind in GROUPED else 1
    manifests: dict[str, Found] = {}
    folders: dict[str, dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for one in everything:
        root, *parts = one.path.split("/")
        if root != FOLDERS[kind] or len(parts) <= depth:
            continue
        name = "/".join(parts[:depth])
        if len(parts) > depth + 1:
            folders[name][f"{root}/{name}/{parts[depth]}"].append(one)
        elif parts[depth] == MANIFEST:
            manifests[name] = one
    for name, some in folders.items():
        written = manifests.get(name)
        if written is not None and (len(some) == 1 or written.modified >= before):
            continue  # all that it has is its manifest's, or was replaced lately
        for folder, files in some.items():
            if _newest(files) < before and not _named(store, kind, name, folder):
                what = "replaced files" if written else "files without a manifest"
                delete = partial(store.objects.delete_many, [one.path for one in files])
                yield _of(what, folder, files, delete, partial(_unneeded, store, kind, name, folder, before))


def _unneeded(store: Store, kind: Kind, name: str, folder: str, before: datetime) -> bool:
    return not _named(store, kind, name, folder) and _quiet(store, folder, before)


def _named(store: Store, kind: Kind, name: str, folder: str) -> bool:
    """Return whether an artefact's manifest names a folder, or cannot be read and so may."""
    try:
        manifest = store.look_up(kind, name)
    except UserError:
        return True
    return manifest is not None and manifest.base == folder


def _finished(store: Store, everything: Iterable[Found], before: datetime) -> Iterator[Garbage]:
    """Yield the checkpoints and Ray's state of runs whose artefact is published."""
    published = {one.path.removesuffix(f"/{MANIFEST}"): one for one in everything if one.path.endswith(f"/{MANIFEST}")}
    results = {one.path.split("/")[1]: one for one in everything if _is_table(one.path)}
    runs: dict[str, list[Found]] = defaultdict(list)
    for one in everything:
        parts = one.path.split("/")
        if parts[0] in ("runs", "checkpoints") and len(parts) > 2:
            runs["/".join(parts[: 2 if parts[0] == "runs" else 3])].append(one)
    for path, files in runs.items():
        root, run, *rest = path.split("/")
        artefact = _artefact_of(run, published)
        if root == "checkpoints" and rest != ["state"]:
            artefact = published.get(f"descendants/{run}/{rest[0]}")
        elif root == "runs" and run.startswith("sweep-"):
            artefact = results.get(run.removeprefix("sweep-"))
        newest = _newest(files)
        if artefact and newest < before and newest < artefact.modified + LAST_WORDS:
            what = "state of an ended run" if root == "runs" else "checkpoint of a finished run"
            yield _of(what, path, files, partial(store.remove_tree, path), partial(_quiet, store, path, before))


def _is_table(path: str) -> bool:
    """Return whether a path is that of a sweep's results, which are written when a sweep ends or is interrupted."""
    return path.startswith("sweeps/") and path.endswith("/results.parquet")


def _artefact_of(run: str, published: dict[str, Found]) -> Found | None:
    """Return the published artefact of a run called "<kind>-<name>"."""
    kind, _, name = run.partition("-")
    return published.get(f"{FOLDERS[kind]}/{name}") if kind in FOLDERS else None


def _downloads(folder: str | None, before: datetime) -> Iterator[Garbage]:
    """Yield what pulls that died left in a local folder."""
    if folder is None:
        return
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"--downloads {folder} is no folder: give the one that pulls went to")
    for ending in LEFTOVERS:
        for path in sorted(Path(folder).expanduser().glob(f"*{ending}")):
            files = [each for each in path.rglob("*") if each.is_file()]
            # the only whole copy, where a pull died before it put its own there: the next pull puts it back
            needed = ending == LEFTOVERS[1] and not path.with_name(path.name.removesuffix(ending)).exists()
            if not (path / LOCK).exists() or needed or not _unlocked(path):
                continue
            changed = datetime.fromtimestamp(max(each.stat().st_mtime for each in files), UTC)
            if changed < before:
                size = sum(each.stat().st_size for each in files)
                delete, still = partial(_remove_folder, path), partial(_unlocked, path)
                yield Garbage("half a download", str(path), size, changed, delete, still)


def _unlocked(partial: Path) -> bool:
    """Return whether no pull is running into a folder."""
    if not (partial / LOCK).exists():
        return True
    try:
        with FileLock(partial / LOCK, timeout=0):
            return True
    except OSError:
        return False


def _remove_folder(path: Path) -> None:
    with clear_errors(str(path)):
        shutil.rmtree(path)


def _quiet(store: Store, folder: str, before: datetime) -> bool:
    """Return whether nothing below a folder has changed since `before`."""
    return all(one.modified < before for one in store.objects.look(folder))


def _newest(files: Iterable[Found]) -> datetime:
    return max(one.modified for one in files)


def _of(
    what: str, path: str, files: list[Found], delete: Callable[[], None], still: Callable[[], bool] = lambda: True
) -> Garbage:
    return Garbage(what, path, sum(one.bytes for one in files), _newest(files), delete, still)
