"""Soft labels in the store, epoch by epoch.

    <store>/softlabels/<key>/<epoch>-<views>-<part>-of-<parts>/    an artefact: soft_labels.parquet and its cost

The key is a hash of everything that the soft labels depend on. Labels of other views or of another ancestry model are
therefore never read. An epoch is complete when all its parts exist, one for each rank that computed it. Views are
numbered by image and repeat, so any number of ranks can read an epoch, even while other epochs are being written.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import torch

from ray_learngene.ancestry.model import Ancestry
from ray_learngene.config import DistillationConfig, OptimizationConfig
from ray_learngene.config.decides import decisive
from ray_learngene.config.image import ImageShape
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.errors import UserError
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.models.device import resolve_device
from ray_learngene.provenance import fingerprint, provenance
from ray_learngene.store.manifest import FOLDERS
from ray_learngene.store.store import Store
from ray_learngene.training.flops import forward_flops
from ray_learngene.training.soft_labels import SoftLabels, joined

Views = npt.NDArray[np.int64]
FORMAT = 1  # of the files and of the sampling of views: change it if views are sampled differently
FILE = "soft_labels.parquet"
READERS = 8
_PART = re.compile(r"(?P<epoch>\d+)-(?P<views>\d+)-(?P<part>\d+)-of-(?P<parts>\d+)")
_VIEW_PACKAGES = ("numpy", "pillow", "timm", "torch", "torchvision")  # their versions determine the views


def facts_of(
    config: OptimizationConfig, teaching: DistillationConfig, images: ImagePipeline, ancestry: Ancestry, precision: str
) -> dict[str, Any]:
    """Return everything that the cached soft labels depend on, as JSON values.

    Args:
        precision: Precision of the ancestry model, as `precision_of` writes it.
    """
    facts = {
        "format": FORMAT,
        "ancestry": ancestry.sha256(),
        "ancestry_image_size": ancestry.image_size if ancestry.square else list(ancestry.input_size),
        **ancestry.resizing(images.preprocessing.image_size),
        **({} if ancestry.scale is None else {"normalised_anew": True}),
        "precision": precision,
        **({"compiled": True} if config.compile else {}),
        "data": images.train.fingerprint,
        "augmentation": decisive(images.augmentation, {"views"}),
        "preprocessing": images.preprocessing.model_dump(mode="json", include={"image_size", "mean", "std"}),
        "view_seed": config.seed_of_views,
        # views of one image are not adjacent in a batch, so with repeats the order depends on the batch size
        "batch_size": config.batch_size if images.augmentation.repeats > 1 else None,
        "k": min(teaching.soft_labels_k, ancestry.classes),
        "dtype": teaching.soft_labels_dtype,
        "versions": {package: version(package).partition("+")[0] for package in _VIEW_PACKAGES},
    }
    return json.loads(json.dumps(facts))


def precision_of(autocast: torch.dtype | None) -> str:
    return str(autocast or torch.float32).removeprefix("torch.")


class SoftLabelCache:
    """The soft labels of one ancestry model for the views of one image set under one augmentation."""

    def __init__(self, store: Store, facts: dict[str, Any], ancestry: Ancestry) -> None:
        self.store, self.facts, self.ancestry = store, facts, ancestry
        self.k, self.dtype = facts["k"], facts["dtype"]
        self.key = fingerprint(facts)[:16]
        self._complete: dict[tuple[int, int], list[str]] = {}

    def parts_of(self, epoch: int, views: int, refresh: bool = True) -> list[str] | None:
        """Return the names of the parts of an epoch with at least `views` views; None if it is incomplete.

        Args:
            refresh: If no complete epoch is known, list the store again.
        """
        found = [names for (e, count), names in sorted(self._complete.items()) if e == epoch and count >= views]
        if found or not refresh:
            return found[0] if found else None
        self.there()
        return self.parts_of(epoch, views, refresh=False)

    def there(self) -> set[str]:
        """List the names of all parts in the store now."""
        groups: dict[tuple[int, int, int], list[str]] = defaultdict(list)
        names = part_names(self.store, self.key)
        for name in names:
            match = _PART.fullmatch(name)
            if match:
                groups[int(match["epoch"]), int(match["views"]), int(match["parts"])].append(name)
        self._complete = {(e, views): group for (e, views, parts), group in groups.items() if len(group) == parts}
        return set(names)

    @staticmethod
    def name(epoch: int, views: int, part: tuple[int, int]) -> str:
        """Return the name of one rank's part of an epoch of `views` views; `part` is (rank, number of ranks)."""
        return f"{epoch:04d}-{views}-{part[0]}-of-{part[1]}"

    def read(self, epoch: int, views: int, wanted: Views) -> SoftLabels | None:
        """Read the soft labels of the wanted views of an epoch, in that order; None if the epoch is incomplete.

        Args:
            views: Number of views of the whole epoch, over all ranks.
            wanted: Numbers of the views to read.

        Raises:
            UserError: a file is damaged or lacks views that its name promises.
        """
        names = self.parts_of(epoch, views)
        if names is None:
            return None
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(lambda name: self._read_part(name, wanted), names))
        found = np.concatenate([numbers for numbers, _ in parts])
        order = np.argsort(found)
        rows = order[np.searchsorted(found, wanted, sorter=order).clip(max=len(found) - 1)] if len(found) else order
        if len(rows) != len(wanted) or not np.array_equal(found[rows], wanted):
            raise UserError(f"{self._where(names[0])} lacks views of its epoch: {_RECOMPUTE}")
        labels = joined([labels for _, labels in parts])[torch.from_numpy(rows)]
        return labels.pin_memory() if resolve_device().type == "cuda" else labels

    def _read_part(self, name: str, wanted: Views) -> tuple[Views, SoftLabels]:
        try:
            data = self.store.read_bytes("softlabels", f"{self.key}/{name}", FILE)
            views, labels = from_table(pyarrow.parquet.read_table(io.BytesIO(data)), self.ancestry.classes)
        except (UserError, pyarrow.ArrowException, KeyError) as error:
            raise UserError(f"soft labels {self._where(name)} cannot be read ({error}): {_RECOMPUTE}") from error
        mine = np.isin(views, wanted)
        return views[mine], labels[torch.from_numpy(np.flatnonzero(mine))]

    def write(
        self, epoch: int, views: int, part: tuple[int, int], numbers: Views, labels: SoftLabels, overwrite: bool = False
    ) -> None:
        """Publish one rank's part of an epoch; an existing part stays, unless `overwrite`.

        Args:
            views: Number of views of the whole epoch, over all ranks.
            part: (rank, number of ranks).
            numbers: Numbers of the part's views.

        Raises:
            UserError: a logit is not finite.
        """
        if not bool(torch.isfinite(labels.values).all()):
            raise UserError(
                "the ancestry model's logits are not finite: check the model, or compute with --precision fp32"
            )
        name = f"{self.key}/{self.name(epoch, views, part)}"
        image = ImageShape.of(self.facts["preprocessing"]["image_size"])
        flops = len(labels) * forward_flops(self.ancestry, image)
        metadata = {
            "facts": self.facts,
            "epoch": epoch,
            "views": len(labels),
            "cost": {"images": len(labels), "teacher_flops": flops},
            **provenance(),
        }
        with scratch_folder() as temporary:
            write_table(to_table(numbers, labels), Path(temporary) / FILE)
            try:
                self.store.publish("softlabels", name, Path(temporary), metadata, overwrite=overwrite)
            except UserError:
                if not self.store.exists("softlabels", name):  # if it exists, another run was faster
                    raise

    def _where(self, name: str) -> str:
        return f"{self.store.uri}/{FOLDERS['softlabels']}/{self.key}/{name}"


_RECOMPUTE = "delete its folder, or compute it again with `learngene softlabels --overwrite`"


def part_names(store: Store, key: str) -> list[str]:
    """List the names of the published parts of a cache."""
    return [name.removeprefix(f"{key}/") for name in store.index.names("softlabels", key)]


def to_table(views: Views, labels: SoftLabels) -> pyarrow.Table:
    """Convert soft labels to a table with one row per view: its number, classes, logits and the sum of the rest."""
    columns = {"view": pyarrow.array(views)}
    for name, tensor in (("classes", labels.classes), ("logits", labels.values)):
        if tensor is not None:
            flat = pyarrow.array(tensor.cpu().numpy().reshape(-1))
            columns[name] = pyarrow.FixedSizeListArray.from_arrays(flat, tensor.shape[-1])
    if labels.rest is not None:
        columns["rest"] = pyarrow.array(labels.rest.cpu().numpy())
    return pyarrow.table(columns)


def write_table(table: pyarrow.Table, path: Path) -> None:
    pyarrow.parquet.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=["classes.list.element"],  # ten bits per class, for a thousand classes
        column_encoding={"view": "DELTA_BINARY_PACKED", "logits.list.element": "BYTE_STREAM_SPLIT"},
    )


def from_table(table: pyarrow.Table, total: int) -> tuple[Views, SoftLabels]:
    """Invert `to_table`."""

    def column(name: str) -> pyarrow.Array:
        return table[name].combine_chunks()

    def matrix(name: str) -> torch.Tensor:
        lists = column(name)
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(flat.reshape(len(table), lists.type.list_size).copy())

    partial = "classes" in table.column_names
    rest = torch.from_numpy(column("rest").to_numpy(zero_copy_only=False).copy()) if partial else None
    labels = SoftLabels(matrix("logits"), matrix("classes") if partial else None, rest, total)
    return column("view").to_numpy(zero_copy_only=False).astype(np.int64), labels
