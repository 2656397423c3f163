"""Compute and cache soft labels before a distillation, in parallel on a Ray cluster.

learngene softlabels --config jobs/recipes/digits-distill.yaml --store ./store

It takes the settings of the distillation. The shards are those that the distillation's workers would write, so shards
of an interrupted or earlier run are reused.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray_learngene import sigterm
from ray_learngene.ancestry.answers import Answers
from ray_learngene.ancestry.cache import SoftLabelCache
from ray_learngene.ancestry.classes import match_classes
from ray_learngene.ancestry.model import Ancestry, load_ancestry
from ray_learngene.config import SoftLabelsConfig
from ray_learngene.data.pipeline import ImagePipeline, checked_image_sets
from ray_learngene.distillation.distill import auxiliary_spec, images_for, with_interpolation
from ray_learngene.errors import Interrupted, UserError, last_line
from ray_learngene.models.compile import require_compiler
from ray_learngene.models.device import gpu_allowed, resolve_device
from ray_learngene.progress import Progress, counted
from ray_learngene.store.store import Store
from ray_learngene.training.engine import resolve_precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """The part of an epoch that one worker computes."""

    epoch: int
    part: int


@dataclass(frozen=True)
class Filling:
    """What all shards share; sent to every worker."""

    config: SoftLabelsConfig
    store: Store
    images: ImagePipeline
    ancestry: Ancestry

    @property
    def parts(self) -> int:
        return max(1, self.config.most_workers)

    @property
    def views(self) -> int:
        """Of an epoch."""
        return len(self.images.train) // self.config.batch_size * self.config.batch_size

    def answers(self) -> Answers:
        config, device = self.config, resolve_device()
        autocast = resolve_precision(config.precision, device)
        return Answers(config, config, self.images, self.ancestry, self.store, device, autocast, config.overwrite)

    def missing(self) -> tuple[str, list[Shard]]:
        """Return the cache's key and the missing shards."""
        cache: SoftLabelCache = self.answers().cache
        longest = max(self.config.epochs, self.config.untied_epochs)  # both trainings see the same views
        epochs = min(longest, self.config.view_epochs or longest)
        every = [Shard(epoch, part) for epoch in range(epochs) for part in range(self.parts)]
        if self.config.overwrite:
            return cache.key, every
        there = cache.there()
        return cache.key, [
            shard
            for shard in every
            if cache.name(shard.epoch, self.views, (shard.part, self.parts)) not in there
            and cache.parts_of(shard.epoch, self.views, refresh=False) is None
        ]

    def compute(self, shard: Shard, computed: Callable[[int], None] = lambda views: None) -> None:
        """Run the ancestry model on every view of a shard, and cache its logits."""
        steps = len(self.images.train) // self.config.batch_size
        config = self.config.model_copy(update={"epochs": shard.epoch + 1, "view_epochs": 0})
        loader = self.images.training_batches(
            config, rank=shard.part, world_size=self.parts, start_step=shard.epoch * steps
        )
        for batch in self.answers().added_to(loader):
            computed(len(batch[0]))


def fill(config: SoftLabelsConfig) -> None:
    """Compute the soft labels of a distillation that are not cached yet."""
    store = Store.of(config)
    store.check(write=True)
    if config.compile and not config.workers:  # else it is a matter of the workers' hosts
        require_compiler()
    spec = auxiliary_spec(config)
    reference = config.ancestry
    assert reference is not None  # else alpha would be 0, which is refused
    ancestry = load_ancestry(reference, store)
    config = with_interpolation(config, ancestry.interpolation, store)  # type: ignore[assignment]
    sets = checked_image_sets(config)
    match_classes(ancestry, reference, config.data, sets, labelled=config.labels, unreadable=config.unreadable)
    filling = Filling(config, store, images_for(config, sets, spec, ancestry), ancestry)
    filling.images.training_batches(config, world_size=filling.parts)  # refuses what does not divide
    if config.workers == 0:
        with gpu_allowed(config.use_gpu), sigterm.graceful():
            key, shards = filling.missing()
            _follow(key, filling, shards, lambda progress: _in_turn(filling, shards, progress))
        return
    _on_cluster(filling)


def _in_turn(filling: Filling, shards: list[Shard], progress: Progress) -> Iterator[Shard]:
    progress.at(0)
    for shard in shards:
        if sigterm.requested():
            return
        filling.compute(shard, progress.advance)
        yield shard


def _on_cluster(filling: Filling) -> None:
    import ray_learngene.cluster.shared_tensors  # noqa: F401  isort:skip  (before the first Ray import)
    import ray

    from ray_learngene.cluster.session import ray_cluster, worker_gpus
    from ray_learngene.cluster.tasks import as_they_end

    config = filling.config
    with ray_cluster(config.address), sigterm.graceful():
        gpus = worker_gpus(config, 1)
        remote = ray.remote(num_cpus=config.cpus_per_worker, num_gpus=gpus, max_retries=config.max_failures)(_call)
        _ = filling.ancestry.sha256(), filling.images.train.fingerprint  # once here, not in every task
        shared = ray.put(filling)

        def computed(shards: list[Shard]) -> Iterator[Shard]:
            for shard, done in as_they_end(partial(remote.remote, shared, "compute"), deque(shards), filling.parts):
                ray.get(done)
                yield shard

        try:
            # asked of a worker: what it computes in, bf16 or fp32, is part of the key
            key, shards = ray.get(remote.remote(shared, "missing"))
            _follow(key, filling, shards, lambda progress: computed(shards))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise UserError(f"soft labels cannot be computed: {last_line(error)}") from error
        except ray.exceptions.RayError as error:
            raise UserError(
                f"a worker was lost {counted(config.max_failures + 1, 'time')} ({str(error).strip().splitlines()[0]}): "
                "run the same command again to continue"
            ) from error


def _call(filling: Filling, method: str, *arguments: Shard) -> Any:
    """Call a method of the filling in a worker."""
    from ray_learngene.cluster.session import use_assigned

    use_assigned()
    return getattr(filling, method)(*arguments)


def _follow(key: str, filling: Filling, shards: list[Shard], compute: Callable[[Progress], Iterator[Shard]]) -> None:
    """Log the progress. A shard that was begun before an interruption is finished.

    Raises:
        Interrupted: it was asked to.
    """
    name = f"soft labels {key} in {filling.store.uri}"
    if not shards:
        log.info(f"{name} are complete: nothing to do")
        return
    log.info(f"{name}: {counted(len(shards), 'part')} of epochs to compute")
    each = filling.views // filling.parts
    number = 0
    with Progress("soft labels", len(shards) * each, "images") as progress:
        for number, shard in enumerate(compute(progress), start=1):
            progress.at(number * each, f"epoch {shard.epoch} part {shard.part + 1} of {filling.parts}")
    if number < len(shards):
        raise Interrupted(number, len(shards), "part")
