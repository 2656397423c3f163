"""All trackers of a command: each in a thread of its own, so that none keeps training waiting or ends it."""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from ray_learngene.config import Config
from ray_learngene.provenance import publishable, without_password
from ray_learngene.store.manifest import FOLDERS, Kind, Manifest
from ray_learngene.store.store import Store
from ray_learngene.tracking.base import Parameters, Reference, Tracker
from ray_learngene.tracking.mlflow import MLflow
from ray_learngene.tracking.tensorboard import TensorBoard
from ray_learngene.tracking.wandb import WandB
from ray_learngene.training.helper_threads import not_training

KINDS: dict[str, Callable[[str], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
CLOSING_SECONDS = 60.0  # that a command waits at its end for a tracker

log = logging.getLogger(__name__)


class Trackers:
    """Hands on what happens, in order. A tracker that fails is told once and hears no more.

    Args:
        texts: KIND:TARGET of each.
        others: Trackers that are open already, by what messages call them.

    Raises:
        UserError: a tracker's package is missing, or its target cannot be one.
    """

    def __init__(self, texts: Sequence[str], others: Mapping[str, Tracker] = MappingProxyType({})) -> None:
        self._feeds = [_Feed(*_open(text)) for text in dict.fromkeys(texts)]
        self._feeds += [_Feed(name, tracker) for name, tracker in others.items()]
        self._ended: set[str] = set()
        self._started: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for feed in self._feeds:
            feed.close()

    def start(self, run: str, parameters: Parameters) -> None:
        """Begin a run, or continue it; nothing for one that was started before."""
        if run not in self._started:
            self._started.add(run)
            self._tell(lambda tracker: tracker.start(run, parameters))

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        """Add points to the curves of a run; nothing for one that has ended."""
        if numbers and run not in self._ended:
            self._tell(lambda tracker: tracker.log(run, step, numbers))

    def finish(self, run: str, row: Mapping[str, Any], reference: Callable[[], Reference]) -> None:
        """End a run whose model is published; `reference` may ask the store."""
        self._ended.add(run)
        self._tell(lambda tracker: tracker.finish(run, row, reference()))

    def fail(self, run: str, error: str) -> None:
        """End a run that failed or was stopped."""
        self._ended.add(run)
        self._tell(lambda tracker: tracker.fail(run, error))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for feed in self._feeds:
            feed.put(what)


def _open(text: str) -> tuple[str, Tracker]:
    kind, _, target = text.partition(":")
    return f"{kind}:{without_password(target)}", KINDS[kind](target)


class _Feed:
    """One tracker and its thread."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker, self.failed = name, tracker, False
        self._queue: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self._thread.start()

    def put(self, what: Callable[[Tracker], None]) -> None:
        if not self.failed:
            self._queue.put(what)

    def close(self) -> None:
        self._queue.put(lambda tracker: tracker.close())
        self._queue.put(None)
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            log.warning(f"the tracker {self.name} has not ended in {CLOSING_SECONDS:.0f} s: what it has left is lost")

    @not_training()
    def _work(self) -> None:
        while (what := self._queue.get()) is not None:
            if self.failed:
                continue
            try:
                what(self.tracker)
            except (Exception, SystemExit) as error:  # whatever a tracker's package raises
                self.failed = True
                text = re.sub(r"//[^/@\s]+@", "//", " ".join(str(error).split()))[:300] or type(error).__name__
                log.warning(f"the tracker {self.name} failed and follows no more: {text}")


class ToDriver:
    """A tracker in a worker that sends all to the driver, whose trackers hear it by `hear`.

    Args:
        send: Takes what `hear` is to be given there.
    """

    def __init__(self, send: Callable[[tuple[Any, ...]], object]) -> None:
        self.send = send

    def start(self, run: str, parameters: Parameters) -> None:
        self.send(("start", run, dict(parameters)))

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        self.send(("log", run, step, dict(numbers)))

    def finish(self, run: str, row: Mapping[str, Any], model: Reference) -> None:
        self.send(("finish", run, dict(row), model))

    def fail(self, run: str, error: str) -> None:
        self.send(("fail", run, error))

    def close(self) -> None: ...


def hear(trackers: Trackers, told: tuple[Any, ...]) -> None:
    """Tell trackers what a `ToDriver` has sent."""
    what, *rest = told
    if what == "finish":
        run, row, model = rest
        trackers.finish(run, row, lambda: model)
    else:
        getattr(trackers, what)(*rest)


def reference_of(store: Store, manifest: Manifest) -> Reference:
    """Return how a tracker names a published model."""
    # at the top: not the averaged weights, and no export, which may be larger
    weights = next(file for file in manifest.files if file.path.endswith(".safetensors") and "/" not in file.path)
    uri = store.objects.uri_of(manifest.base)
    return Reference(uri, manifest.version, weights.sha256)


def run_of(kind: Kind, name: str) -> str:
    """Return what the run of an artefact is called: its address in the store."""
    return f"{FOLDERS[kind]}/{name}"


def parameters_of(config: Config) -> dict[str, str]:
    """Return the settings of a run as texts."""
    return {name: str(value) for name, value in publishable(config.model_dump(mode="json")).items()}
