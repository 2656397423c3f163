"""The plan of the proof: which models are trained, in which order, at which learning rates.

A run is one model. Its key is a hash of everything that decides its weights, so a finished run is never trained again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from ray_learngene.provenance import fingerprint

PLAN = Path(__file__).with_name("plan.yaml")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One model to train.

    Attributes:
        arm: `scratch` learns from labels, `distilled` from the teacher's probabilities alone. A learngene of the plan:
            its epochs and learning rate are those of the distillation, and every depth is tuned alike afterwards.
        lr: At a batch of 512.
        searching: Trained and scored on parts of the training split, to choose a learning rate.
    """

    data: str
    arm: str
    depth: int
    epochs: int
    seed: int
    lr: float
    searching: bool

    @property
    def batch(self) -> tuple[Any, ...]:
        """What runs that can share one process and one data loader have in common."""
        return self.data, self.arm, self.epochs, self.seed, self.lr, self.searching


@dataclass(frozen=True)
class Step:
    """An entry of the plan: a search for learning rates (`search` epochs), or the runs of some depths and seeds.

    Attributes:
        gain: Points of top-1 that the last doubling of epochs must have brought a depth, mean over seeds. A depth that
            gained less has reached its plateau and is left out.
        lrs: Learning rates of a search that only screens a variant; it is not extended, and decides no rate.
        lr: A learning rate that a shorter search has chosen; default: the search of half as many epochs chooses.
    """

    data: str
    arm: str
    search: int | None = None
    epochs: int | None = None
    depths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    gain: float | None = None
    lrs: tuple[float, ...] = ()
    lr: float | None = None


class Plan:
    """The plan as `plan.yaml` states it. Another plan names it in `extends`, and says only what differs.

    Args:
        share: Part of the training images that all runs and the teacher see; default: all, or what the plan says.

    Attributes:
        base: Size of the model from which the sweeps take everything but the depth.
        images: Flags of every command that reads images.
        settings: Flags of every sweep.
        teacher: Flags of the ancestry model.
        learngenes: Flags of the distillation of each learngene arm. `depth` is the layers of what it distils, if not
            those of the largest model. `start` is the arm whose learngene it starts from, of a run's epochs; its own
            are `epochs` then. `arm` is how the sweep names its method, if it has options there. An arm with
            `of` takes the learngene of that other arm, and has a `tuning` of its own.
        tuning: Epochs of a learngene's descendants, and their learning rate as a share of the distillation's. With
            `taught` the teacher's probabilities take the place of labels.
    """

    def __init__(self, text: str, share: float | None = None) -> None:
        values = yaml.safe_load(text)
        if "extends" in values:
            values = {**yaml.safe_load(PLAN.with_name(values["extends"]).read_text()), **values}
        self.base: dict[str, int] = values["base"]
        self.images: dict[str, Any] = values["images"] | ({"train_share": share} if share else {})
        self.settings: dict[str, Any] = values["settings"]
        self.teacher: dict[str, Any] = values["teacher"]
        self.search: dict[str, Any] = values["search"]
        self.learngenes: dict[str, dict[str, Any]] = values.get("learngenes", {})
        self.tuning: dict[str, Any] = values.get("tuning", {})
        self.steps = [
            Step(**{name: tuple(value) if isinstance(value, list) else value for name, value in step.items()})
            for step in values["steps"]
        ]

    def key(self, run: Run) -> str:
        """Hash of a run's configuration."""
        decisive = {"base": self.base, "images": self.images, "settings": self.settings}
        if run.searching:
            decisive["split"] = self.search["split"]
        if self.taught(run.arm):
            decisive["teacher"] = self.teacher
        if run.arm in self.learngenes:
            decisive |= {"learngene": self.learngenes[run.arm], "tuning": self.tuning}
            if other := self.learngenes[run.arm].get("of"):
                decisive["of"] = self.learngenes[other]
            if start := self.started_from(run):
                decisive["start"] = self.learngenes[start.arm]
        return fingerprint({**asdict(run), **decisive})[:16]

    def distilled_as(self, run: Run) -> Run:
        """The run whose learngene a run takes: its own, or another arm's."""
        return replace(run, arm=self.learngenes[run.arm].get("of", run.arm))

    def started_from(self, run: Run) -> Run | None:
        """The run whose learngene the distillation of a run starts from."""
        start = self.learngenes[self.distilled_as(run).arm].get("start")
        return replace(run, arm=start) if start else None

    def measured_as(self) -> dict[str, str]:
        """The first arm whose distillation has the same step, by arm."""
        first: dict[tuple[str, int | None], str] = {}
        return {
            arm: first.setdefault((made["method"], made.get("depth")), arm)
            for arm, made in self.learngenes.items()
            if "of" not in made
        }

    def reads_answers(self, arm: str) -> bool:
        """Tell whether a distillation reads the answers that a teacher gave for a few epochs of views."""
        return bool(self.learngenes[arm].get("soft_labels"))

    def tuning_of(self, arm: str) -> dict[str, Any]:
        return self.learngenes[arm].get("tuning", self.tuning)

    def taught(self, arm: str) -> bool:
        """Tell whether the teacher answers anywhere in the making of an arm."""
        if arm not in self.learngenes:
            return arm == "distilled"
        made = self.learngenes[self.learngenes[arm].get("of", arm)]
        return made.get("alpha", 1) > 0 or ("start" in made and self.taught(made["start"]))

    def runs(self, step: Step, rows: Iterable[Row]) -> list[Run]:
        """The runs of a step, as far as the rows decide its learning rates.

        Call it again when they are finished: a search whose best rate lies at the border has more.
        """
        rows = list(rows)
        if step.search:
            rates = {depth: self._grid(step, depth, rows) for depth in self.search["depths"]}
            if step.arm in self.learngenes:  # one rate for all depths
                rates = dict.fromkeys(rates, sorted({lr for grid in rates.values() for lr in grid}))
            if step.lrs:
                rates = {depth: list(step.lrs) for depth in rates}
            return [
                Run(step.data, step.arm, depth, step.search, self.search["seed"], lr, True)
                for lr in sorted({lr for grid in rates.values() for lr in grid})
                for depth in rates
                if lr in rates[depth]
            ]
        assert step.epochs is not None
        return [
            Run(step.data, step.arm, depth, step.epochs, seed, step.lr or self.rate(step, depth, rows), False)
            for seed in step.seeds
            for depth in step.depths
            if step.gain is None or last_gain(rows, step, depth) >= step.gain
        ]

    def rate(self, step: Step, depth: int, rows: Iterable[Row]) -> float:
        """The learning rate that the search of half as many epochs chose for the searched depth next to this one.

        A learngene has one rate, the best one on average over the searched depths.

        Raises:
            LookupError: that search is not finished.
        """
        assert step.epochs is not None
        search = Step(step.data, step.arm, search=step.epochs // 2)
        nearest = min(self.search["depths"], key=lambda each: (abs(math.log(each / depth)), -each))
        scores = self._scores(search, nearest, rows)
        if not scores or set(self._grid(search, nearest, rows)) - scores.keys():
            raise LookupError(f"the search of {search.search} epochs for {step.arm} on {step.data} is not finished")
        return max(scores, key=lambda lr: scores[lr])

    def _scores(self, step: Step, depth: int, rows: Iterable[Row]) -> dict[float, float]:
        """Top-1 by learning rate of what a search has finished at a depth; below 0 where training diverged.

        Of a learngene it is the mean over the searched depths, of the rates that all of them have.
        """
        depths = self.search["depths"] if step.arm in self.learngenes else [depth]
        scores: dict[float, list[float]] = {}
        for row, each in product(rows, depths):
            run = Run(step.data, step.arm, each, step.search or 0, self.search["seed"], row["lr"], True)
            if row["key"] == self.key(run):
                scores.setdefault(row["lr"], []).append(-1.0 if row["top1"] is None else row["top1"])
        return {lr: fmean(found) for lr, found in scores.items() if len(found) == len(depths)}

    def _grid(self, step: Step, depth: int, rows: Iterable[Row]) -> list[float]:
        """The learning rates of a search: the given ones, and more while the best finished one is at the border."""
        scores = self._scores(step, depth, rows)
        return extended(
            sorted({*self.search["lrs"], *scores}), scores, self.search["factor"], tuple(self.search["limits"])
        )


def extended(
    grid: list[float], scores: Mapping[float, float], factor: float, limits: tuple[float, float]
) -> list[float]:
    """A grid of learning rates with the next one, `factor` away, where all are scored and the best is at the border."""
    if not set(grid) <= scores.keys():
        return grid
    best = max(scores, key=lambda lr: scores[lr])
    if best == grid[0] and best > limits[0]:
        return [best / factor, *grid]
    if best == grid[-1] and best < limits[1]:
        return [*grid, best * factor]
    return grid


def last_gain(rows: Iterable[Row], step: Step, depth: int) -> float:
    """Points that the last doubling of epochs before a step brought at a depth, mean over the seeds of both."""
    assert step.epochs is not None
    wanted = (step.data, step.arm, depth, False)
    scores: dict[int, dict[int, float]] = {step.epochs // 4: {}, step.epochs // 2: {}}
    for row in rows:
        have = (row["data"], row["arm"], row["depth"], row["searching"])
        if have == wanted and row["epochs"] in scores and row["top1"] is not None:
            scores[row["epochs"]][row["seed"]] = row["top1"]
    shorter, longer = scores.values()
    gains = [longer[seed] - shorter[seed] for seed in shorter.keys() & longer.keys()]
    return sum(gains) / len(gains) if gains else math.inf


def pending(plan: Plan, rows: Iterable[Row]) -> list[Run]:
    """Pick the runs to train next: those of the first unfinished step that can share a loader."""
    rows = list(rows)
    done = {row["key"] for row in rows}
    for step in plan.steps:
        left = [run for run in plan.runs(step, rows) if plan.key(run) not in done]
        if left:
            return [run for run in left if run.batch == left[0].batch]
    return []
