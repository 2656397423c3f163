"""`learngene measure`: time models, write or publish the record, import one, or write the script."""

from __future__ import annotations

import json
import logging

from ray_learngene.config import MeasureConfig
from ray_learngene.config.documents import read_document
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.local import local_path, writable_file
from ray_learngene.io.objects import Objects
from ray_learngene.store.store import Store
from ray_learngene.store.timings import Record, check_device, check_name, publish_record, read_records
from ray_learngene.terminal import one_line

FORMAT = 1

log = logging.getLogger(__name__)


def measure(config: MeasureConfig) -> list[Record]:
    """Do what a configuration says.

    Returns:
        The records that were made or imported.

    Raises:
        UserError: see the message; nothing is written or published then.
    """
    store = Store.of(config)
    if config.script:
        path = writable_file(config.script, "--script")
        from ray_learngene.delivery.device import write_script

        write_script(path)
        log.info(f"wrote {config.script}: copy it to the device, with folders that `learngene export` made")
        return []
    # here, not after minutes of measuring
    out = writable_file(config.out) if config.out else None
    if not out:
        store.check(write=True)
    if config.device:
        check_device(config.device)
    records = _imported(config.imported) if config.imported else _measured(config, store)
    if out:
        text = json.dumps({"format": FORMAT, "records": [one.model_dump(mode="json") for one in records]}, indent=2)
        Objects(str(out.parent)).put(out.name, f"{text}\n".encode())
        log.info(f"written to {out}: learngene measure --import {out}")
        return records
    for record in records:
        check_name(store, record.name(config.device), config.overwrite)
    for record in records:
        manifest = publish_record(store, record, config.device, config.overwrite)
        device = manifest.name.partition("/")[0]
        log.info(f"published timings/{manifest.name}: budgets such as latency@{device}<=8ms use it")
    return records


def _imported(given: str) -> list[Record]:
    path = local_path(given, "--import")
    try:
        with clear_errors(str(path)):
            text = read_document(path)
    except ValueError as error:
        raise UserError(f"{given}: {error}") from None
    return read_records(text, given)


def _measured(config: MeasureConfig, store: Store) -> list[Record]:
    from ray_learngene.delivery.device import measure, record_lines

    records = measure(config, store)
    for line in record_lines(records):
        log.info(one_line(line, 300))
    return records
