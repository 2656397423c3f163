"""How far a run is, and what it writes of that beside its engine's state into a checkpoint."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from ray_learngene.errors import RunError

PROGRESS_FILE = "progress.json"
EMA_FILE = "ema.safetensors"
_GOOD = "the last checkpoint is good, and the same command goes on from it"


@dataclass
class Progress:
    """How far a run is and what it has cost; kept inside every checkpoint, so that costs survive interruptions.

    Attributes:
        resumed_seconds: The part of `seconds` that earlier processes spent.
        answers_read: Images, over all workers, that the ancestry model was not asked about: the answer was kept before.
        fit: What fitting to the size cost before the first step, where a method does so (the fields of `Fit`).
        unreadable: Names of the images that could not be read and were skipped.
    """

    step: int = 0
    seconds: float = 0.0
    resumed_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    answers_read: int = 0
    unreadable: list[str] = field(default_factory=list)
    fit: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """The progress of an earlier process, from its checkpoint."""
        progress = cls(**json.loads((folder / PROGRESS_FILE).read_text()))
        progress.resumed_seconds = progress.seconds
        return progress

    def write(self, folder: Path) -> None:
        facts = {name: value for name, value in vars(self).items() if name != "fit" or value}
        (folder / PROGRESS_FILE).write_text(json.dumps(facts))


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about writing a checkpoint into one line.

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
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunError(f"cannot write a checkpoint below {folder.parent}: {reason}; {_GOOD}") from None
