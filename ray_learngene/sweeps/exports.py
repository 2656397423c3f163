"""Exports of descendants: made before each is published, or added later to what a sweep has published."""

from __future__ import annotations

import json
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2 import UndefinedError
from pydantic import ValidationError

from ray_learngene import sigterm
from ray_learngene.config import SweepConfig
from ray_learngene.data.image_set import Subset
from ray_learngene.data.loader import Batch, eval_loader
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.data.reader import Reader
from ray_learngene.delivery.export import Exporter, ExportImages, spaced
from ray_learngene.errors import Interrupted, UserError, last_line
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.models.card import model_card
from ray_learngene.models.origin import Origin, data_name
from ray_learngene.models.timm_folder import load_timm
from ray_learngene.progress import counted
from ray_learngene.store.store import Store

log = logging.getLogger(__name__)

Row = dict[str, Any]
CARD, METRICS = "README.md", "metrics.json"


def write_exports(folder: Path, name: str, formats: Sequence[str], config: SweepConfig, images: ImagePipeline) -> str:
    """Export the timm model of a folder into folders next to it, and return the formats, joined by commas.

    A model that does not export to a format is published without it and those after it, with a warning.
    """
    size = config.batch_size // config.accumulation

    def training(count: int) -> Iterable[Batch]:
        some = Subset(images.train, spaced(len(images.train), count))
        return eval_loader(some, images.preprocessing, size, reader=Reader(some, images.unreadable))

    seen = ExportImages(
        f"{counted(len(images.val), 'validation image')} of {data_name(config.data)}",
        lambda: images.scored_batches(size)[0],
        training,
    )
    made: list[str] = []
    try:
        exporter = Exporter(load_timm(folder), name, config, images=seen) if formats else None
        for format in formats:
            assert exporter is not None
            (folder / format).mkdir()
            exporter.write(format, folder / format)
            made.append(format)
    except UserError as error:
        log.warning(f"{name} is published without {formats[len(made)]}: {error}")
        for format in formats[len(made) :]:
            shutil.rmtree(folder / format, ignore_errors=True)
    return ",".join(made)


def descendant_card(row: Row, origin: Origin, config: Row) -> str:
    """Return the README.md of a descendant.

    Args:
        config: Settings of its sweep, as they are published.
    """
    averaged = {} if row["ema_top1"] is None else {"top-1 of the averaged weights": row["ema_top1"]}
    return model_card(
        "descendant_card.md",
        name=row["descendant"],
        origin=origin,
        data=data_name(row["data"]),
        split=config["validate_on"],
        metrics={"top-1": row["top1"], "top-1 before tuning": row["top1_untuned"], **averaged},
        row=row,
        config=config,
    )


@dataclass(frozen=True)
class AddsExports:
    """What adds exports to published descendants of a sweep; sent to Ray's workers."""

    config: SweepConfig
    images: ImagePipeline
    store: Store

    def missing(self, row: Row) -> list[str]:
        """Return the formats that the sweep wants and a descendant lacks."""
        return [format for format in self.config.export if format not in (row.get("exports") or "").split(",")]

    def add(self, name: str) -> Row | None:
        """Publish a descendant again, with the exports that it lacks; its weights stay as they are.

        Returns:
            Its row, or None if no export could be made.
        """
        manifest = self.store.manifest("descendant", f"{self.config.name}/{name}")
        row = manifest.metadata["row"]
        with scratch_folder() as scratch:
            folder = self.store.download("descendant", manifest.name, scratch / "model")
            formats = self.missing(row)
            for format in formats:  # of an export that the row does not know
                shutil.rmtree(folder / format, ignore_errors=True)
            made = write_exports(folder, name, formats, self.config, self.images)
            if not made:
                return None
            row = {**row, "exports": ",".join(filter(None, [row.get("exports"), made]))}
            metadata = {**manifest.metadata, "row": row}
            (folder / METRICS).write_text(json.dumps(metadata, indent=2) + "\n")
            with suppress(KeyError, UndefinedError, ValidationError):  # an earlier version's keeps its card
                (folder / CARD).write_text(descendant_card(row, Origin(**metadata["origin"]), metadata["config"]))
            self.store.publish("descendant", manifest.name, folder, metadata, overwrite=True)
        return row


def add_exports(adds: AddsExports, rows: Sequence[Row], added: Callable[[Row], None]) -> None:
    """Add the exports that are missing to published descendants, in this process or on Ray.

    Args:
        rows: Of the descendants.
        added: Called with the new row of each.

    Raises:
        Interrupted: this process was asked to end.
    """
    config = adds.config
    names = [row["descendant"] for row in rows if row["status"] == "finished" and adds.missing(row)]
    if not names:
        return
    log.info(f"sweep {config.name}: {len(names)} published descendants lack {' or '.join(config.export)}")
    with sigterm.graceful():
        made = map(adds.add, names) if config.in_process else _on_ray(adds, names)
        for number, row in enumerate(made, start=1):
            if row:
                log.info(
                    f"[{number}/{len(names)}] {row['descendant']}: exported to {row['exports'].replace(',', ', ')}"
                )
                added(row)
            if sigterm.requested() and number < len(names):
                raise Interrupted(number, len(names), "descendant")


def _on_ray(adds: AddsExports, names: Sequence[str]) -> Iterator[Row | None]:
    """Yield rows as they are ready; each is made by a task with the CPUs of a trial."""
    import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
    import ray

    from ray_learngene.cluster.driver import from_workers
    from ray_learngene.cluster.session import ray_cluster, require_resources
    from ray_learngene.cluster.tasks import as_they_end

    config = adds.config
    with ray_cluster(config.address):
        require_resources(config.address, 1, config.cpus_per_trial, 0, "exports")
        task = ray.remote(num_cpus=config.cpus_per_trial, max_retries=config.max_failures)(_in_worker)
        with from_workers(lambda told: None) as driver:
            start = partial(task.remote, ray.put((adds, driver)))
            for name, done in as_they_end(start, deque(names), config.max_concurrent or len(names)):
                try:
                    yield ray.get(done)
                except ray.exceptions.RayError as error:
                    log.warning(f"{name} stays without {' and '.join(config.export)}: {last_line(error)}")
                    yield None


def _in_worker(shared: tuple[AddsExports, Any], name: str) -> Row | None:
    adds, driver = shared
    torch.set_num_threads(max(1, int(adds.config.cpus_per_trial)))
    with driver.connected():
        return adds.add(name)
