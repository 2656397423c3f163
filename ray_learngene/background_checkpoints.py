"""Checkpoints that are uploaded while training goes on."""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ray_learngene.progress import clear_disk_errors


class Uploads(Protocol):
    """Checkpoints whose `save` returns when the checkpoint is in the store, such as `StoreCheckpoints`."""

    def latest(self) -> AbstractContextManager[Path | None]: ...
    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None: ...


class BackgroundCheckpoints:
    """Writes a checkpoint to the local disk and lets a thread upload it.

    One is uploaded at a time. If the next is written before that is done, it waits; if one more is written, it takes
    the place of the waiting one. So a slow or unreachable store costs checkpoints, never training time. Leaving the
    context waits for all uploads.
    """

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads
        self._changed = threading.Condition()
        self._waiting: tuple[Path, dict[str, Any]] | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
        if error is None:
            self._raise_error()

    def latest(self) -> AbstractContextManager[Path | None]:
        """A folder with the newest checkpoint; None where there is none."""
        return self.uploads.latest()

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        """Write a checkpoint and see to its upload.

        Raises:
            Exception: whatever ended an earlier upload for good.
        """
        self._raise_error()
        folder = Path(tempfile.gettempdir(), f"checkpoint-{uuid.uuid4().hex}")
        try:
            write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._changed:
            replaced, self._waiting = self._waiting, (folder, metrics)
            if self._thread is None:
                self._thread = threading.Thread(target=self._upload, name="checkpoint upload")
                self._thread.start()
        if replaced is not None:
            shutil.rmtree(replaced[0], ignore_errors=True)

    def finish(self) -> None:
        """Wait until everything is uploaded; raises as `save` does."""
        self._wait()
        self._raise_error()

    def busy(self) -> bool:
        """Never: a newer checkpoint takes the place of the one that waits."""
        return False

    def _wait(self) -> None:
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


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target)
