"""Whether an exported file computes what the timm model computes, and where it differs first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_learngene.errors import UserError

Array = npt.NDArray[Any]
Run = Callable[[Array], Array]  # images to logits
TOLERANCE = 1e-4  # of a logit in fp32


@dataclass(frozen=True)
class Parity:
    """An exported file against the timm model.

    Attributes:
        images: Images that both were given.
        max_difference: Largest difference of a logit.
        agreement: Percentage of images on which both decide for the same class; of models without classes the mean
            cosine similarity of their features in percent.
        undecided: Images whose two highest logits are closer than twice the tolerance, so that either may come first.
        top1: Accuracy of the file in percent; None where there are no labels.
        timm_top1: The same of the timm model.
        loss: Mean cross-entropy of the file.
        first: Index of the first image that differs too much; None if none does.
    """

    images: int
    max_difference: float
    agreement: float
    undecided: int
    top1: float | None
    timm_top1: float | None
    loss: float | None
    first: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return all but the place of a difference, rounded for a card."""
        found = {name: value for name, value in asdict(self).items() if name != "first"}
        return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in found.items()}


def compare(
    pairs: Iterable[tuple[Array, Array, Array | None]], tolerance: float = TOLERANCE, classifies: bool = True
) -> Parity:
    """Compare logits of a file and of the timm model, batch by batch.

    Args:
        pairs: The file's logits, the timm model's, and labels, if there are any.
        classifies: False for features, of which none is a decision.
    """
    count = undecided = right = timm_right = 0
    worst = loss = same = 0.0
    first: int | None = None
    labelled = True
    for found, expected, labels in pairs:
        difference = np.abs(found.astype(np.float64) - expected)
        difference[~np.isfinite(difference)] = np.inf
        highest = np.sort(expected, axis=1)[:, -2:]  # of one class there is no second
        close = highest[:, -1] - highest[:, 0] <= 2 * tolerance
        agree = found.argmax(1) == expected.argmax(1) if classifies else np.ones(len(found), bool)
        wrong = np.flatnonzero((difference.max(1) > tolerance) | ~(agree | close))
        if len(wrong) and first is None:
            first = count + int(wrong[0])
        worst = max(worst, float(difference.max()))
        undecided += int((close & ~agree).sum())
        same += float((agree if classifies else _cosines(found, expected)).sum())
        if labels is None:
            labelled = False
        else:
            right += int((found.argmax(1) == labels).sum())
            timm_right += int((expected.argmax(1) == labels).sum())
            loss += float(-_log_softmax(found)[np.arange(len(labels)), labels].sum())
        count += len(found)
    return Parity(
        images=count,
        max_difference=worst,
        agreement=100 * same / count,
        undecided=undecided,
        top1=100 * right / count if labelled else None,
        timm_top1=100 * timm_right / count if labelled else None,
        loss=loss / count if labelled else None,
        first=first,
    )


def _cosines(features: Array, others: Array) -> Array:
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(others, axis=1)
    return (features * others).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny)


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def require_equal(parity: Parity, what: str, where: Callable[[], str | None]) -> None:
    """Refuse an fp32 file that does not compute what the timm model computes.

    Args:
        what: The file in a few words.
        where: Finds the first layer that differs; None where that is not known.

    Raises:
        UserError: it does not; says by how much, and where it differs first.
    """
    if parity.first is None:
        return
    layer = where()
    place = f"; it differs first in layer {layer}" if layer else ""
    raise UserError(
        f"{what} does not compute what the timm model computes: image {parity.first} of {parity.images} differs, a "
        f"logit by {parity.max_difference:.2g} ({TOLERANCE:g} is allowed){place}: nothing was written"
    )
