"""Checkpoints of a process without Ray, in the store; Ray Train writes those of its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store

FORMAT = 1  # one more whenever what `train` saves cannot be read by the version before


def steps_of(manifests: Iterable[Manifest]) -> dict[str, int]:
    """Return the steps of checkpoints by name; an earlier version stored the last whole epoch's."""
    return {manifest.name: int((manifest.metadata.get("metrics") or {}).get("step", 0)) for manifest in manifests}


def continuing_text(steps: Mapping[str, int], total: int) -> str:
    """Return the line about runs that continue from a checkpoint."""
    named = [f"{name} from step {step} of {total}" for name, step in sorted(steps.items())]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"{len(named)} of them continue from checkpoints: {', '.join(named[:3])}{more}"


class StoreCheckpoints:
    """The newest checkpoint of one run, as an artefact `checkpoints/<run>/<name>` that the next one replaces whole.

    Args:
        metadata: What its manifest says of the run.
    """

    def __init__(self, store: Store, name: str, metadata: dict[str, Any] | None = None) -> None:
        self.store, self.name, self.metadata = store, name, metadata or {}

    def exists(self) -> bool:
        """Check whether there is one."""
        return self.store.exists("checkpoint", self.name)

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Yield a folder with the newest verified checkpoint; None if there is none.

        Raises:
            UserError: It is broken, or a version of this package wrote it whose checkpoints this one cannot continue.
        """
        if not self.exists():
            yield None
            return
        manifest = self.store.manifest("checkpoint", self.name)
        found = manifest.metadata.get("format", FORMAT)
        if found != FORMAT:
            raise UserError(
                f"the checkpoint {self.name} in {self.store.uri} is of format {found!r}, and this version continues "
                f"format {FORMAT}: go on with the version that wrote it, or take another --name"
            )
        with scratch_folder() as folder:
            yield self.store.download("checkpoint", self.name, Path(folder) / "checkpoint")

    def save(self, write: Callable[[Path], None], metrics: dict[str, Any]) -> None:
        """Publish what `write` puts into a folder, then delete the previous checkpoint."""
        with scratch_folder() as folder:
            write(folder)
            self.store.publish(
                "checkpoint",
                self.name,
                folder,
                {**self.metadata, "format": FORMAT, "metrics": metrics},
                overwrite=True,
                keep_replaced=False,
            )

    def remove(self) -> None:
        """Delete the checkpoint, once its result is published."""
        self.store.remove("checkpoint", self.name)
