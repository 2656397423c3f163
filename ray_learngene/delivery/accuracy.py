"""The accuracy of a size without a trained descendant: measured, interpolated, or unknown.

Descendants record their accuracy before training. That is the accuracy of an expansion of the same learngene to the
same size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Method
from ray_learngene.methods.elastic import ElasticMethod
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import Spec
from ray_learngene.store.index import labels_key
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.rows import mapping, numbers_of


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent of an expansion before training.

    Attributes:
        error: Percentage points by which an interpolation may be wrong; 0 for a measurement.
        source: Where it comes from, in a few words.
    """

    top1: float
    error: float
    source: str

    def __str__(self) -> str:
        if not self.error:
            return f"top-1 {self.top1:.2f} % untuned, {self.source}"
        return f"top-1 about {self.top1:.1f} % (± {self.error:.1f}) untuned, {self.source}"


UNKNOWN = "accuracy unknown: measure it with `learngene expand --data`"


def known_accuracy(
    rows: Iterable[Mapping[str, Any]], stored: StoredLearngene, method: Method, spec: Spec
) -> Accuracy | None:
    """Return the accuracy of an expansion as far as rows of descendants tell; None where they do not.

    Between two measured depths of the same width, or two widths of the same depth, it is interpolated linearly.
    Nothing is extrapolated. The distillation has measured the size of its auxiliary model.
    """
    measured = _measured(rows, stored, method, spec)
    size = (spec.width, spec.depth)
    if size in measured:
        return Accuracy(measured[size], 0.0, "measured")
    if (own := _distilled(stored, method, spec)) is not None:
        return Accuracy(own, 0.0, "measured by the distillation")
    if spec.depths:  # of which there is no next one
        return None
    for axis, name in ((1, "depths"), (0, "widths")):
        line = {key[axis]: top1 for key, top1 in measured.items() if key[1 - axis] == size[1 - axis]}
        below = max((one for one in line if one < size[axis]), default=None)
        above = min((one for one in line if one > size[axis]), default=None)
        if below is not None and above is not None:
            top1 = _between(line, below, above, size[axis])
            return Accuracy(top1, _error(line, below, above), f"interpolated from {name} {below} and {above}")
    return None


def _distilled(stored: StoredLearngene, method: Method, spec: Spec) -> float | None:
    """Return what a distillation measured of its auxiliary model, if an expansion to that size is this very model."""
    facts = stored.manifest.metadata
    config, metrics = mapping(facts.get("config")), mapping(facts.get("metrics"))
    by_labels = config.get("labels") is True and config.get("teach", "logits") == "logits"
    if not by_labels or not isinstance(method, ElasticMethod) or spec != stored.learngene.spec:
        return None
    return (numbers_of(metrics, "top1") or {}).get("top1")


def _measured(
    rows: Iterable[Mapping[str, Any]], stored: StoredLearngene, method: Method, spec: Spec
) -> dict[tuple[int, int], float]:
    """Mean untuned accuracy by width and depth, over seeds, on the validation images that most rows have."""
    made, labels = method.as_made(stored.learngene), labels_key(stored.learngene.labels)
    found: dict[Any, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: Counter[Any] = Counter()
    for row in rows:
        numbers = numbers_of(row, "width", "depth", "top1_untuned", "patch")
        if (
            numbers is None
            or (row.get("learngene"), row.get("learngene_version")) != (stored.manifest.name, stored.manifest.version)
            or row.get("labels") != labels
            or row.get("fit_steps")
            or (row.get("image"), numbers["patch"]) != (spec.image.plain, spec.patch)
            or row.get("architecture") != spec.architecture
            or (spec.depths and row.get("stages") != "-".join(map(str, spec.depths)))
            or not _same_method(str(row.get("arm")), made, stored)
        ):
            continue
        images = (row.get("data"), row.get("validation"))
        found[images][int(numbers["width"]), int(numbers["depth"])].append(numbers["top1_untuned"])
        counts[images] += 1
    if not counts:
        return {}
    most = counts.most_common(1)[0][0]
    return {size: fmean(values) for size, values in found[most].items()}


def _same_method(arm: str, made: Method, stored: StoredLearngene) -> bool:
    try:
        return create_method(arm.partition("@")[0]).as_made(stored.learngene) == made
    except UserError:
        return False


def _between(line: Mapping[int, float], below: int, above: int, wanted: int) -> float:
    share = (wanted - below) / (above - below)
    return line[below] + share * (line[above] - line[below])


def _error(line: Mapping[int, float], below: int, above: int) -> float:
    """Return the largest error with which the two neighbours themselves would be interpolated, each from its own.

    A neighbour at the end of the line has none. Then it is half of the neighbours' difference, at least.
    """
    known: Sequence[int] = sorted(line)
    errors = [abs(line[above] - line[below]) / 2]
    for one in (below, above):
        place = known.index(one)
        if 0 < place < len(known) - 1:
            errors.append(abs(_between(line, known[place - 1], known[place + 1], one) - line[one]))
    return max(errors)
