"""The page of a sweep, and that of a whole store."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ray_learngene import __version__
from ray_learngene.config import PageConfig
from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable
from ray_learngene.io.local import writable_file
from ray_learngene.io.objects import Objects
from ray_learngene.pages.ancestries import Ancestries
from ray_learngene.pages.columns import Record, model_columns, records_of, unfinished_models
from ray_learngene.pages.devices import device_columns, device_timings
from ray_learngene.pages.html import assemble
from ray_learngene.pages.spending import planned_and_spent
from ray_learngene.store.costs import costed
from ray_learngene.store.manifest import FOLDERS
from ray_learngene.store.rows import usable
from ray_learngene.store.store import Entry, Store
from ray_learngene.store.sweeps import read_settings
from ray_learngene.store.timings import Timings

log = logging.getLogger(__name__)


class SweepPage:
    """The page of one sweep, which lies next to its results table."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self._ancestries = Ancestries(store)

    @cached_property
    def _timings(self) -> list[Timings]:
        return device_timings(self.store)

    def text(
        self,
        records: Sequence[Record],
        unfinished: Sequence[Mapping[str, Any]] = (),
        running: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the HTML file.

        Args:
            records: Its descendants that have finished.
            unfinished: Rows of others that ended.
            running: While the sweep runs, how many descendants are `done` of the `total`, and what is trained `now`.
        """
        facts = _settings(self.store, self.name, records)
        sweep = {**facts, "unfinished": unfinished_models(unfinished), "running": running}
        return _page(self.store, records, {self.name: sweep}, self._ancestries, self._timings, root="../../")


def write_page(config: PageConfig) -> Path:
    """Write the page of all sweeps of a store, or of some, to a local file, and return its path.

    Raises:
        UserError: a sweep is not there, or the file cannot be written.
    """
    out = writable_file(config.out)
    store = Store.of(config)
    store.check(write=False)
    entries: dict[str, list[Entry]] = defaultdict(list)
    for entry in store.entries(["descendant"]):
        if usable(entry.facts, f"{FOLDERS[entry.kind]}/{entry.name}"):
            entries[entry.name.partition("/")[0]].append(entry)
    records = [
        one
        for name, some in entries.items()
        for one in records_of(costed([entry.facts for entry in some], store, name), some)
    ]
    there = list(dict.fromkeys(one["sweep"] for one in records))
    for name in config.sweeps:
        if name not in there:
            near = f"there is {', '.join(there[:5])}" if there else "there is no descendant at all"
            raise UserError(f"--sweeps {name}: no descendant of that sweep in {store.uri}: {near}")
    sweeps = {
        name: _settings(store, name, [one for one in records if one["sweep"] == name])
        for name in there
        if not config.sweeps or name in config.sweeps
    }
    address = quote(Path(os.path.relpath(store.uri, out.parent)).as_posix(), errors="replace")
    root = f"{address}/" if store.objects.is_local else None
    records = [one for one in records if one["sweep"] in sweeps]
    text = _page(store, records, sweeps, Ancestries(store), device_timings(store), root=root)
    Objects(str(out.parent)).put(out.name, text.encode())
    log.info("page: %s", out)
    return out


def _settings(store: Store, name: str, records: Sequence[Record]) -> dict[str, Any]:
    """Return what the page says of a sweep besides its descendants."""
    try:
        settings = read_settings(store, name)
    except Unavailable:
        raise
    except UserError as error:  # what its descendants say stays true
        log.warning("left out: the budgets of the sweep %s: %s", name, error)
        settings = None
    found: dict[str, Any] = {"budgets": list(settings["budgets"]) if settings else []}
    if planned := planned_and_spent(store, name, records):
        found["planned"] = planned
    return found


def _page(
    store: Store,
    records: Sequence[Record],
    sweeps: Mapping[str, Mapping[str, Any]],
    ancestries: Ancestries,
    timings: Sequence[Timings],
    *,
    root: str | None,
) -> str:
    """Return a page of some sweeps.

    Args:
        root: The relative address of the store from where the page will be; None where a browser cannot go there.
    """
    data: dict[str, Any] = {
        "store": None if store.objects.is_local else store.uri,
        "root": root,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": __version__,
        "sweeps": sweeps,
        "ancestries": ancestries.lines(records),
        **model_columns(records),
    }
    if records:
        data["models"]["columns"] |= device_columns(records, timings, len(data["devices"]))
        data["devices"] += [f"{each.device}, {each.text}" for each in timings]
    title = f"{next(iter(sweeps))}: choose a model" if len(sweeps) == 1 else "Choose a model"
    return assemble(data, title)
