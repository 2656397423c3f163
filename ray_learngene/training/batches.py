"""The batches of one rank: the micro-batches of a step, and the validation split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from torch.utils.data import DataLoader

from ray_learngene.config import OptimizationConfig
from ray_learngene.data.pipeline import ImagePipeline
from ray_learngene.training.step import Batch
from ray_learngene.training.world import World


class Answers(Protocol):
    """Adds the ancestry model's logits to the batches of a rank."""

    def added_to(self, loader: DataLoader[Any]) -> Iterable[Batch]: ...


class Batches:
    """Opens the loader at the first requested step and continues from there.

    Args:
        config: Sets the augmented views, their order, and the number of images of a step.
        answers: Adds the ancestry model's logits; None if the objective needs none.
        whole_evaluation: Every rank scores the whole validation split.
    """

    def __init__(
        self,
        images: ImagePipeline,
        config: OptimizationConfig,
        world: World,
        answers: Answers | None = None,
        whole_evaluation: bool = False,
    ) -> None:
        self.images, self.config, self.world, self.answers = images, config, world, answers
        self._scored = images.scored_batches(
            max(1, int(world.micro_batch(config))),
            rank=0 if whole_evaluation else world.rank,
            world_size=1 if whole_evaluation else world.world_size,
        )
        self._next, self._end = 0, 0  # the next step of the open loader, and its end
        self._steps: Iterator[Batch] = iter(())

    def of_step(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of step `step`, counted from 0; each is read when it is requested."""
        if step != self._next or step >= self._end:
            self._open(step)
        self._next = -1  # until all are read: a step that fails in between leaves the rest in the loader
        yield from islice(self._steps, self.config.accumulation)
        self._next = step + 1

    def scored(self) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Iterate over this rank's part of each split that models are scored on, with its number.

        0 is the validation split; 1, if there is one, holds the images that the best epoch is chosen on.
        """
        return ((number, iter(loader)) for number, loader in enumerate(self._scored))

    def _open(self, step: int) -> None:
        steps_per_epoch = len(self.images.train) // self.config.batch_size
        epochs = max(self.config.epochs, step // steps_per_epoch + 1)  # fitting may take more steps than training
        self._end = epochs * steps_per_epoch
        loader = self.images.training_batches(
            self.config.model_copy(update={"epochs": epochs}),
            rank=self.world.rank,
            world_size=self.world.world_size,
            start_step=step,
        )
        self._steps = iter(self.answers.added_to(loader) if self.answers is not None else loader)
