"""Teaching features: a student with projectors into the teacher's space, the loss, and the objective.

The projectors are trained with the student and stay in checkpoints. No artefact holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_learngene.config.image import ImageShape
from ray_learngene.models.compile import compile_layers
from ray_learngene.models.features import VECTOR, FeatureReader, Features, feature_shapes, readable
from ray_learngene.training.engine import Engine
from ray_learngene.training.objectives import mean_loss

Kind = Literal["cosine+smooth-l1", "cosine", "smooth-l1", "mse"]
OWN = "own"  # the student's vector before its projector, in evaluation


class Projector(nn.Linear):
    """A linear map of channels; of fewer than its own, as a narrower sub-model has, it takes the first columns."""

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, C]` or `[B, C, H, W]` to the teacher's channels."""
        channels_last = features.movedim(1, -1)
        return F.linear(channels_last, self.weight[:, : features.shape[1]], self.bias).movedim(-1, 1)


class FeatureStudent(nn.Module):
    """A student with a projector for each of the teacher's features.

    In training it returns projected features, or several if an elastic student does. In evaluation it adds `own`.

    Args:
        student: Maps images to features where its `forward` is given a reader; see `readable`.
        shapes: Of the teacher's features.
        image: Shape of the student's images.
    """

    def __init__(
        self, student: nn.Module, reader: FeatureReader, shapes: dict[str, torch.Size], image: ImageShape
    ) -> None:
        super().__init__()
        self.student, self.reader = readable(student), reader
        own = feature_shapes(student, lambda model, images: model(images, reader), torch.zeros(1, *image))
        self.projectors = nn.ModuleDict({name: Projector(own[name][0], size[0]) for name, size in shapes.items()})
        self.positions = {name: shape[1:].numel() for name, shape in own.items()}

    def forward(self, images: Tensor) -> Any:
        return self.student(images, self._read)

    def _read(self, model: nn.Module, images: Tensor) -> Features:
        features = self.reader(model, images)
        projected = {name: projector(features[name]) for name, projector in self._projectors()}
        return projected if self.training else {**projected, OWN: features[VECTOR]}

    def draw(self, generator: np.random.Generator, done: float) -> None:
        """Sample the sub-models of the next step of an elastic student."""
        draw = getattr(self.student, "draw", None)
        if draw is not None:
            draw(generator, done)

    def no_weight_decay(self) -> set[str]:
        """Return the student's parameters without weight decay, for timm's optimizer factory."""
        names: set[str] = getattr(self.student, "no_weight_decay", set)()
        return {f"student.{name}" for name in names}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        compile_layers(self.student)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch the student's checkpointing on or off, under timm's name."""
        self.student.set_grad_checkpointing(enable)  # type: ignore[operator]

    def projector_flops(self) -> int:
        """Count the FLOPs of the projectors for one image."""
        sizes = ((name, projector.weight.numel()) for name, projector in self._projectors())
        return sum(2 * size * self.positions[name] for name, size in sizes)

    def _projectors(self) -> Iterator[tuple[str, Projector]]:
        for name, projector in self.projectors.items():
            assert isinstance(projector, Projector)
            yield name, projector


class FeatureLoss:
    """Distance of projected features from the teacher's standardised ones.

    The teacher's features have mean 0 and deviation 1 over the channels of each position, as in arXiv 2205.14141. The
    student's projected map is resized to the teacher's grid, bilinearly. `cosine+smooth-l1` is the sum that arXiv
    2407.20179 uses.

    Args:
        vector: Weight of the vector's loss; the maps' mean loss has weight 1.
    """

    def __init__(self, kind: Kind = "cosine+smooth-l1", vector: float = 1.0) -> None:
        self.kind, self.vector = kind, vector

    def __call__(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        """Compute the loss and its two parts, scalars in fp32."""
        losses = {name: self._distance(student[name].float(), each.float()) for name, each in teacher.items()}
        vector = losses.pop(VECTOR)
        maps = torch.stack(list(losses.values())).mean()
        loss = maps if self.vector == 0 else maps + self.vector * vector
        return {"loss": loss, "map_loss": maps.detach(), "vector_loss": vector.detach()}

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
        student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
        teacher = F.layer_norm(teacher, teacher.shape[-1:])
        parts = {
            "cosine": lambda: (1 - F.cosine_similarity(student, teacher, dim=-1)).mean(),
            "smooth-l1": lambda: F.smooth_l1_loss(student, teacher),
            "mse": lambda: F.mse_loss(student, teacher),
        }
        return torch.stack([parts[kind]() for kind in self.kind.split("+")]).sum()


class FeatureObjective:
    """Distillation of features from a frozen ancestry model that sees the same images as the student."""

    def __init__(
        self, ancestry: nn.Module, reader: FeatureReader, loss: FeatureLoss, autocast: torch.dtype | None = None
    ) -> None:
        self.ancestry, self.reader, self.loss, self.autocast = ancestry.eval(), reader, loss, autocast

    def __call__(self, model: Engine, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        teacher = self.taught(images)
        return mean_loss(model(images), lambda student: self.loss(student, teacher))

    @torch.no_grad()
    def taught(self, images: Tensor) -> Features:
        """Return the teacher's features of a batch."""
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            return self.ancestry(images, self.reader)
