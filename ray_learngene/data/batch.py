"""Batches of decoded pixels, and the arithmetic on the device that turns them into a model's input.

Loader processes send uint8, a quarter of the bytes of float32. They also send their random choices: where to erase,
with what noise, and how to mix each pair. Nothing here is random. Every operation rounds as timm's and torchvision's
transforms of single images do, so the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from timm.data.mixup import one_hot
from torch import Tensor

from ray_learngene.data.mixing import Mix, Patch
from ray_learngene.models.device import resolve_device

Batch = tuple[Tensor, Tensor]


class PixelBatch(NamedTuple):
    """A micro-batch as loader processes send it."""

    pixels: Tensor  # uint8 [B, H, W, C]
    labels: Tensor  # int64 [B]
    places: list[tuple[int, int, int, int, int]]  # of every erased rectangle: image, top, left, height, width
    noise: Tensor  # float32, flat: C * height * width for each rectangle
    shares: Tensor | None  # float32 [B, 2], where pairs are mixed: of the own label and of the partner's
    blend: Tensor | None  # the same of the pixels, where any are blended
    boxes: Tensor | None  # int64 [B, 4], where any are exchanged: top, bottom, left, right

    @classmethod
    def of(
        cls,
        pixels: Sequence[npt.NDArray[np.uint8]],
        labels: Sequence[int],
        patches: Sequence[Sequence[Patch]] = (),
        mixes: Sequence[Mix] | None = None,
    ) -> PixelBatch:
        """Put images `[H, W, C]` together.

        Args:
            patches: What is erased of every image; default: nothing.
            mixes: One for each pair (0, 1), (2, 3), …; None mixes nothing.
        """
        erased = [(number, patch) for number, each in enumerate(patches) for patch in each]
        shares = blend = boxes = None
        if mixes is not None:
            shares = _of_both([_shares(mix.share) for mix in mixes])
            if any(mix.box is None and mix.share != 1 for mix in mixes):
                blend = _of_both([_shares(1.0 if mix.box else mix.share) for mix in mixes])
            if any(mix.box for mix in mixes):
                boxes = _of_both([mix.box or (0, 0, 0, 0) for mix in mixes])
        return cls(
            torch.from_numpy(np.stack(pixels)),
            torch.tensor(labels),
            [(number, patch.top, patch.left, *patch.noise.shape[1:]) for number, patch in erased],
            torch.cat([patch.noise.flatten() for _, patch in erased]) if erased else torch.empty(0),
            shares,
            blend,
            boxes,
        )


def _shares(own: float) -> tuple[float, float]:
    # In double precision, rounded later: as torch does with the plain numbers that timm multiplies by.
    return own, 1.0 - own


def _of_both(rows: Sequence[tuple[float, ...]]) -> Tensor:
    """Return what each pair has, for each of its images."""
    return torch.tensor(rows).repeat_interleave(2, dim=0)


class Finish:
    """Makes of a batch of pixels what a model is given: normalised, erased and mixed images, and targets.

    Args:
        soft: Targets are smoothed probabilities `[B, classes]` also where nothing is mixed; else class indices `[B]`.
        device: None: the one this process computes on.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        classes: int = 0,
        smoothing: float = 0.0,
        soft: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.mean, self.std, self._device = mean, std, device
        self.classes, self.smoothing, self.soft = classes, smoothing, soft

    # Only where there is a batch: who merely makes a loader, such as a driver, must not open the device.
    @cached_property
    def device(self) -> torch.device:
        if self._device is not None:
            return self._device
        device = resolve_device()
        return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device

    @cached_property
    def constants(self) -> tuple[Tensor, ...]:
        # Tensors, as CUDA multiplies by the reciprocal of a plain number where it should divide.
        return tuple(
            torch.tensor(each, device=self.device).view(1, -1, 1, 1) for each in ((255.0,), self.mean, self.std)
        )

    @property
    def pins(self) -> bool:
        """Whether batches come from page-locked memory."""
        return (self._device or resolve_device()).type == "cuda"

    def __call__(self, batch: PixelBatch | Batch) -> Batch:
        if not isinstance(batch, PixelBatch):  # finished already
            images, targets = batch
            return self._sent(images), self._sent(targets)
        pixels, labels = self._sent(batch.pixels), self._sent(batch.labels)
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        scale, mean, std = self.constants
        images.div_(scale).sub_(mean).div_(std)
        if batch.places:
            _erase(images, batch.places, self._sent(batch.noise))
        if batch.shares is None:
            return images, self._probabilities(labels) if self.soft else labels
        if batch.blend is not None or batch.boxes is not None:
            partners = _swapped(images)
            if batch.blend is not None:
                own, others = self._sent(batch.blend).view(-1, 2, 1, 1, 1).unbind(1)
                images.mul_(own).add_(partners * others)
            if batch.boxes is not None:
                images = torch.where(_inside(self._sent(batch.boxes), images), partners, images)
        probabilities, shares = self._probabilities(labels), self._sent(batch.shares)
        return images, probabilities * shares[:, :1] + _swapped(probabilities) * shares[:, 1:]

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _probabilities(self, labels: Tensor) -> Tensor:
        off = self.smoothing / self.classes
        return one_hot(labels, self.classes, on_value=1.0 - self.smoothing + off, off_value=off)


def _erase(images: Tensor, places: list[tuple[int, int, int, int, int]], noise: Tensor) -> None:
    first, channels = 0, images.shape[1]
    for number, top, left, height, width in places:
        end = first + channels * height * width
        images[number, :, top : top + height, left : left + width] = noise[first:end].view(channels, height, width)
        first = end


def _swapped(rows: Tensor) -> Tensor:
    """Return the partner of every row, in pairs (0, 1), (2, 3), …"""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """Return where the pixels `[B, 1, H, W]` are that are exchanged."""
    top, bottom, left, right = (each.view(-1, 1, 1, 1) for each in boxes.unbind(1))
    rows = torch.arange(images.shape[-2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[-1], device=images.device).view(1, 1, 1, -1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
