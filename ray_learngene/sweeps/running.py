"""Mark a running sweep: the object `sweeps/<name>/running` exists while it runs, and stays if it is killed."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray_learngene import sigterm
from ray_learngene.errors import Interrupted, UserError
from ray_learngene.store.store import Store

log = logging.getLogger(__name__)


@contextmanager
def running(store: Store, name: str) -> Iterator[None]:
    """Keep the mark while this run of a sweep goes on, and warn if another run has left one."""
    path, mine = f"sweeps/{name}/running", uuid.uuid4().hex
    for found in store.objects.look(f"sweeps/{name}"):
        if found.path == path:
            log.warning(
                f"another run of the sweep {name} began at {found.modified:%Y-%m-%d %H:%M} UTC and goes on, or was "
                "killed; a descendant that it publishes counts for this run, too"
            )
    store.write_text(path, mine)
    try:
        yield
    finally:
        with suppress(UserError):
            if store.read_text(path) == mine:  # else a later run's
                store.objects.delete(path)


@contextmanager
def soon_over(store: Store) -> Iterator[None]:
    """After a stop request wait for the store once: its trials have waited since; after an error not at all."""
    try:
        yield
    except BaseException as error:
        left = store.patience - sigterm.since() if isinstance(error, Interrupted) else 0.0
        store.objects.retry.end_within(left)
        raise
