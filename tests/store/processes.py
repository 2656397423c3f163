"""Operations of a store in processes of their own: to race each other, and to die between any two writes.

The processes are forked from a server that has imported the store and opened nothing, because an S3
client does not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.store.store import Store

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])

DONE, TOLD, DEAD = 0, 3, 9
WRITING = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"}

ROW = {"row": {"top1": 2.0}}
OPERATIONS: dict[str, Callable[[Store, Path, Path], object]] = {
    "publish": lambda store, folder, out: store.publish("descendant", "s/a", folder, ROW),
    "overwrite": lambda store, folder, out: store.publish("descendant", "s/a", folder, ROW, overwrite=True),
    "replace": lambda store, folder, out: store.publish(
        "descendant", "s/a", folder, ROW, overwrite=True, keep_replaced=False
    ),
    "remove": lambda store, folder, out: store.remove("descendant", "s/a"),
    "download": lambda store, folder, out: store.download("descendant", "s/a", out),
    "download again": lambda store, folder, out: store.download("descendant", "s/a", out, overwrite=True),
}


def start(
    operation: str, uri: str, folder: Path, out: Path, *, root: Path | None = None, writes: int = 0, barrier: Any = None
) -> ForkServerProcess:
    """Run an operation in a process, which with `root` dies after so many changes to the files below it."""
    arguments = (operation, uri, folder, out, root and str(root), writes, barrier, dict(os.environ))
    process = CONTEXT.Process(target=_run, args=arguments, daemon=True)
    process.start()
    return process


def _run(
    operation: str,
    uri: str,
    folder: Path,
    out: Path,
    root: str | None,
    writes: int,
    barrier: Any,
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if barrier is not None:
        barrier.wait()
    if root is not None:
        _die_after(writes, root)
    try:
        OPERATIONS[operation](Store(uri), folder, out)
    except UserError as error:
        print(error, file=sys.stderr)
        os._exit(TOLD)
    os._exit(DONE)


def _die_after(writes: int, root: str) -> None:
    left = [writes]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in WRITING:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(root):
            return
        if left[0] == 0:
            os._exit(DEAD)
        left[0] -= 1

    sys.addaudithook(watch)
