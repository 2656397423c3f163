"""The weights of the best epoch so far, by images that were held out of training for this choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn


class Best:
    """The best epoch of one model: higher top-1 on the held-out images, then lower loss, then the earlier one.

    Without labels the first other score counts, such as that of nearest neighbours, if there is one.

    Args:
        number: Which model of a run; 0 is the model itself, 1 the average of its weights.
        record: What `record` returned earlier, to resume from.
        folder: The checkpoint to resume from.

    Attributes:
        index: Which entry of the history it is; None before the first.
    """

    def __init__(self, number: int, record: dict[str, Any] | None = None, folder: Path | None = None) -> None:
        self.file = f"best-{number}.safetensors"
        self.index: int | None = None
        self._score: tuple[float, ...] = ()
        self._state: dict[str, Tensor] = {}
        if record is not None and folder is not None:
            self.index, self._score = record["index"], tuple(record["score"])
            self._state = safetensors.torch.load_file(folder / self.file)

    def offer(self, model: nn.Module, metrics: dict[str, float], index: int) -> None:
        """Take the weights of an epoch if they are the best, by what `Scorer.metrics` returned."""
        higher = [value for name, value in metrics.items() if name != "val_loss"]
        score = (*higher[:1], -metrics["val_loss"])
        if not self._score or score > self._score:
            self._score, self.index = score, index
            self._state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def load_into(self, model: nn.Module) -> None:
        """Give a model the best weights."""
        model.load_state_dict(self._state)

    def write(self, folder: Path) -> None:
        """Write the weights for a checkpoint."""
        safetensors.torch.save_file(self._state, folder / self.file)

    def record(self) -> dict[str, Any]:
        """Return all but the weights, as JSON values."""
        return {"index": self.index, "score": self._score}
