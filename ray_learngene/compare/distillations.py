"""The distillations of a benchmark, each once, on Ray or in this process."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ray_learngene import sigterm
from ray_learngene.config import BenchConfig, DistillConfig
from ray_learngene.config.compare import ARM_SETTINGS
from ray_learngene.distillation.distill import distill
from ray_learngene.errors import Diverged, Interrupted, UserError, last_line
from ray_learngene.methods.registry import create_method
from ray_learngene.progress import Progress, counted
from ray_learngene.store.checkpoints import steps_of
from ray_learngene.store.store import Store
from ray_learngene.tracking.trackers import ToDriver, Trackers, hear

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from ray_learngene.cluster.driver import Driver

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a distillation failed; if it diverged, a retry would diverge again."""

    reason: str
    diverged: bool = False


def distill_all(config: BenchConfig, store: Store, runs: Sequence[DistillConfig], what: str) -> dict[str, Failure]:
    """Run the distillations that are not in the store: in parallel on the cluster, or one by one in this process.

    Returns:
        Failures by name of the run.

    Raises:
        Interrupted: this process was asked to end; running distillations have written their checkpoints.
        UserError: another method made the learngene with the name of a run.
    """
    runs = list({run.name: run for run in runs}.values())
    left = [run for run in runs if not _is_done(store, run)]
    log.info(f"{what}: {counted(len(left), 'distillation')} to run, {len(runs) - len(left)} done")
    found = ((run.name, store.look_up("checkpoint", f"learngene-{run.name}/state")) for run in left)
    for name, manifest in found:
        if manifest is not None:
            log.info(f"{name} continues from step {steps_of([manifest])[manifest.name]}")
    failed: dict[str, Failure] = {}

    def tell(number: int, run: DistillConfig, failure: Failure | None) -> None:
        if failure:
            failed[run.name] = failure
            text = failure.reason
        else:
            text = f"top-1 {store.manifest('learngene', run.name).metadata['metrics']['top1']:6.2f} %"
        begin = f"[{number:{len(str(len(left)))}}/{len(left)}] {what} {run.name:40} lr {run.lr:.1e}"
        log.info(f"{begin}   {text}   {time.monotonic() - began:6.0f} s since the start")
        progress.at(number)

    began = time.monotonic()
    with Progress(what, len(left), "distillations", quiet=True) as progress:
        progress.at(0)
        if config.in_process:
            for number, run in enumerate(left, start=1):
                tell(number, run, _distil(run))
        elif left:
            _distil_on_cluster(config, left, tell)
    return failed


def _distil_on_cluster(
    config: BenchConfig, runs: Sequence[DistillConfig], tell: Callable[[int, DistillConfig, Failure | None], None]
) -> None:
    import ray

    from ray_learngene.cluster.driver import from_workers
    from ray_learngene.cluster.preemption import stop_requests
    from ray_learngene.cluster.session import trial_gpus
    from ray_learngene.cluster.tasks import as_they_end

    gpus = trial_gpus(config, "distillations")
    remote = ray.remote(num_cpus=config.cpus_per_trial, num_gpus=gpus, max_retries=config.max_failures)(_distill_task)
    ended = 0
    with (
        Trackers(config.track) as trackers,
        from_workers(partial(hear, trackers)) as driver,
        stop_requests() as requests,
    ):

        def start(run: DistillConfig) -> ray.ObjectRef:
            return remote.remote(run, max(1, int(config.cpus_per_trial)), requests, driver)

        waiting = deque(runs)
        for run, done in as_they_end(start, waiting, len(runs)):
            try:
                failure = ray.get(done)
            except Interrupted:
                waiting.append(run)  # only its worker was asked to end, or this process is: then it does not start
                continue
            except ray.exceptions.RayError as death:
                failure = Failure(last_line(death))
            ended += 1
            tell(ended, run, failure)
    if sigterm.requested() and ended < len(runs):
        raise Interrupted(ended, len(runs), "distillation")


def _is_done(store: Store, run: DistillConfig) -> bool:
    """Check whether a run's learngene is in the store.

    Raises:
        UserError: the learngene of that name was made by another method or with other settings.
    """
    if not store.exists("learngene", run.name):
        return False
    made = store.manifest("learngene", run.name).metadata["config"]
    before = DistillConfig.model_construct(**made)  # a setting that came later has its default
    for name in ("method", "epochs", *sorted(ARM_SETTINGS)):
        then, now = (json.dumps(getattr(config, name)) for config in (before, run))
        if then != now and (name != "method" or create_method(before.method) != create_method(run.method)):
            raise UserError(
                f"the learngene {run.name!r} in {store.uri} was made with {name} {then}, not {now}: "
                "give the arm another name"
            )
    return True


def _distill_task(run: DistillConfig, threads: int, requests: Queue, driver: Driver) -> Failure | None:
    """Run `_distil` as a Ray task; the driver's trackers follow it, and its warnings are shown there."""
    from ray_learngene.cluster.preemption import watching
    from ray_learngene.cluster.session import use_assigned

    use_assigned(threads)
    with watching(requests), driver.connected():
        return _distil(run, Trackers((), {"of the driver": ToDriver(driver.report)}) if run.track else None)


def _distil(run: DistillConfig, trackers: Trackers | None = None) -> Failure | None:
    """Run one distillation; return a failure that a retry would not fix, raise any other."""
    try:
        with quiet():
            distill(run, trackers=trackers)
    except UserError as error:
        return Failure(str(error), diverged=isinstance(error, Diverged))
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Log warnings only, because the benchmark logs one line per run itself."""
    package = logging.getLogger("ray_learngene")
    before = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(before)


def refuse_failed(failed: Mapping[str, Failure]) -> None:
    if failed:
        name, failure = next(iter(failed.items()))
        raise UserError(
            f"{counted(len(failed), 'distillation')} failed: {name}: {failure.reason}; "
            "the others are stored, run it again"
        )
