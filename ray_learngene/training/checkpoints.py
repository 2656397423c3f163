"""Checkpoints that are uploaded while training continues."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from safetensors import SafetensorError

from ray_learngene.config.documents import parse_object
from ray_learngene.errors import RunError, reason_of
from ray_learngene.io.scratch import scratch_path


class Uploads(Protocol):
    """Checkpoints whose `save` returns after the upload to the store, such as `StoreCheckpoints`."""

    def latest(self) -> AbstractContextManager[Path | None]: ...
    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None: ...


class BackgroundCheckpoints:
    """Writes a checkpoint to the local disk and uploads it in a thread.

    One checkpoint is uploaded at a time. The next one waits until that upload is done; a newer one replaces a waiting
    one. A slow or unreachable store therefore costs checkpoints, never training time. Leaving the context waits for all
    uploads.
    """

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads
        self._changed = threading.Condition()
        self._waiting: tuple[Path, dict[str, Any]] | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.wait()
        if error is None:
            self._raise_error()

    def latest(self) -> AbstractContextManager[Path | None]:
        """Return a context with the folder of the newest checkpoint; None if there is none."""
        return self.uploads.latest()

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        """Write a checkpoint and schedule its upload.

        Raises:
            Exception: the error that ended an earlier upload, after its retries.
        """
        self._raise_error()
        folder = written(write)
        with self._changed:
            replaced, self._waiting = self._waiting, (folder, metrics)
            if self._thread is None:
                self._thread = threading.Thread(target=self._upload, name="checkpoint upload")
                self._thread.start()
        if replaced is not None:
            shutil.rmtree(replaced[0], ignore_errors=True)

    def finish(self) -> None:
        """Wait for the uploads, like `wait`, then raise their error, like `save`."""
        self.wait()
        self._raise_error()

    def busy(self) -> bool:
        """Return False: `save` never waits, because a newer checkpoint replaces a waiting one."""
        return False

    def wait(self) -> None:
        """Wait until no upload is in progress."""
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _upload(self) -> None:
        while True:
            with self._changed:
                waiting, self._waiting = self._waiting, None
                if waiting is None or self._error is not None:
                    if waiting is not None:
                        shutil.rmtree(waiting[0], ignore_errors=True)
                    self._thread = None
                    self._changed.notify_all()
                    return
            folder, metrics = waiting
            try:
                with clear_disk_errors(folder):
                    self.uploads.save(lambda target, folder=folder: _move(folder, target), metrics)  # type: ignore[misc]
            except Exception as error:
                self._error = error
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def written(write: Callable[[Path], None]) -> Path:
    """Return a new folder on the local disk that `write` has filled; none is left if that fails."""
    folder = scratch_path()
    try:
        write(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target)


class Checkpoints(Uploads, Protocol):
    """The checkpoints of one run. All ranks call each method at the same step.

    `save` names a folder for `write` to fill, and may return before the upload ends; `finish` waits for it. Both raise
    the error of an earlier upload. `busy` says whether this rank's `save` would have to wait. The checkpoint is then
    skipped, unless it is the last one.
    """

    def finish(self) -> None: ...
    def busy(self) -> bool: ...


PROGRESS_FILE = "progress.json"


EMA_FILE = "ema.safetensors"


_GOOD = "the last checkpoint is good, and the same command continues from it"


@dataclass
class Progress:
    """Progress and cost of a run, stored in every checkpoint so that costs survive interruptions.

    Attributes:
        seconds: By the clock, of one worker.
        resumed_seconds: The part of `seconds` that earlier processes spent.
        device_seconds: CPU seconds of all workers' processes, or GPU seconds; None if an earlier version began the run.
        load_seconds: Mean load of the workers' hosts times `seconds`; None as above.
        answers_read: Images, over all ranks, with cached logits: they needed no teacher forward pass.
        fit: Cost of adapter fitting before the first step (the fields of `Fit`); empty if the method has no adapter.
        best: Of every model of the run, what `Best.record` returns; empty if the last epoch is published.
        unreadable: Names of the images that could not be read and were skipped.
    """

    step: int = 0
    seconds: float = 0.0
    resumed_seconds: float = 0.0
    device_seconds: float | None = 0.0
    load_seconds: float | None = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    answers_read: int = 0
    unreadable: list[str] = field(default_factory=list)
    fit: dict[str, float] = field(default_factory=dict)
    best: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """Read the progress of an earlier process from its checkpoint.

        Raises:
            RunError: it is damaged, or a later version wrote it.
        """
        try:
            unknown = {"device_seconds": None, "load_seconds": None}  # to an earlier version
            progress = cls(**unknown | parse_object((folder / PROGRESS_FILE).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"the checkpoint is not one that this version can read ({error}): --overwrite, or another name"
            ) from None
        progress.resumed_seconds = progress.seconds
        return progress

    def costs(self) -> dict[str, float | None]:
        """Return the seconds, and the mean load meanwhile."""
        load = self.load_seconds / self.seconds if self.load_seconds and self.seconds else None
        return {
            "seconds": round(self.seconds, 3),
            "device_seconds": None if self.device_seconds is None else round(self.device_seconds, 3),
            "load": None if load is None else round(load, 2),
        }

    def write(self, folder: Path) -> None:
        fields = {name: value for name, value in vars(self).items() if name not in ("fit", "best") or value}
        (folder / PROGRESS_FILE).write_text(json.dumps(fields))


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an operating system error while writing a checkpoint into one line.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise RunError(
                f"no space left in {folder.parent} for a checkpoint: free some, or set TMPDIR to another disk; {_GOOD}"
            ) from None
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise RunError(f"cannot write a checkpoint below {folder.parent}: {reason}; {_GOOD}") from None
