"""Notes of failed workers for the workers that replace them.

A failed worker cannot reach the others, because they wait in a collective operation. Ray Train restarts all of them.
The notes say what the new workers must do differently.
"""

from __future__ import annotations

import json
from typing import Any

from ray.train import UserCallback

from ray_learngene.errors import UserError
from ray_learngene.store.store import Store
from ray_learngene.training.out_of_memory import is_out_of_memory


class RunNotes:
    """`runs/<run>/notes.json`.

    `halvings`: how often to halve the micro-batch. `error`: an error that a restart would not mend.
    """

    def __init__(self, store: Store, run: str) -> None:
        self.store, self.path = store, f"runs/{run}/notes.json"

    def read(self) -> dict[str, Any]:
        return self.store.read_object(self.path, "delete it") or {}

    def add(self, **notes: Any) -> None:
        self.store.write_text(self.path, json.dumps({**self.read(), **notes}))

    def clear(self) -> None:
        """Forget what other workers noted on other hosts."""
        if self.read():
            self.store.write_text(self.path, "{}")


class NoteFailures(UserCallback):
    """Notes, in Ray Train's controller, why workers failed."""

    def __init__(self, notes: RunNotes) -> None:
        self.notes = notes

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        notes = self.notes
        errors = [getattr(error, "_base_exc", error) for error in worker_exceptions.values()]
        mistakes = [error for error in errors if isinstance(error, UserError)]
        if any(is_out_of_memory(error) for error in errors):
            notes.add(halvings=notes.read().get("halvings", 0) + 1)
        elif mistakes:
            notes.add(error=str(mistakes[0]))
