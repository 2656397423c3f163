"""The trials of a sweep: every descendant that is not finished yet, side by side with others where that is good."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_learngene.ancestry import Ancestry
from ray_learngene.arms import Arm
from ray_learngene.candidates import StoredLearngene
from ray_learngene.config import SweepConfig
from ray_learngene.costs import kept_memory, macs, step_memory
from ray_learngene.data.images import Images
from ray_learngene.descend import Descendant, Tuning, descendant
from ray_learngene.errors import Diverged, Interrupted, RunError
from ray_learngene.packing import Load, Place, pack
from ray_learngene.siblings import train_siblings
from ray_learngene.specs import Spec
from ray_learngene.store import Store
from ray_learngene.terminal import finished_text, print_message, trial_line


@dataclass(frozen=True)
class Trial:
    """What is trained.

    Attributes:
        lr: The sweep's; where learning rates are searched, until the search has chosen one.
    """

    arm: str
    spec: Spec
    seed: int
    lr: float

    @property
    def group(self) -> tuple[str, Spec, int]:
        """What the trials of a learning-rate search have in common."""
        return self.arm, self.spec, self.seed


Known = dict[tuple[str, Spec, int], list[tuple[float, float]]]  # learning rates tried and their scores, by group


@dataclass(frozen=True)
class SweepInputs:
    """What all trials of a sweep have in common; broadcast to the cluster once.

    Attributes:
        learngenes: Of all arms, by name.
        ancestry: Teacher of the descendants; None where they learn from labels alone.
        costs: Columns of the results table by spec: parameters, MACs, memory, measured latency.
    """

    config: SweepConfig
    learngenes: dict[str, StoredLearngene]
    images: Images
    ancestry: Ancestry | None
    costs: dict[Spec, dict[str, Any]]

    def learngene(self, trial: Trial) -> StoredLearngene | None:
        """What a trial's descendant is expanded from."""
        name = Arm.parse(trial.arm, self.config.learngene).learngene_of(trial.spec, trial.seed)
        return self.learngenes[name] if name else None

    def descendant(self, trial: Trial) -> Descendant:
        """The descendant that a trial trains."""
        return descendant(
            trial.arm, trial.spec, trial.seed, trial.lr, self.config, self.images, self.learngene(trial), self.ancestry
        )

    def train(
        self,
        trials: Sequence[Trial],
        report: Callable[[Trial, dict[str, Any]], None],
        ended: Callable[[Trial, dict[str, Any] | RunError], None],
    ) -> None:
        """Train the descendants of trials that see the same views, side by side; see `train_siblings`."""

        def tuning(trial: Trial) -> Tuning:
            return Tuning(
                self.descendant(trial),
                self.learngene(trial),
                self.costs[trial.spec],
                lambda metrics: report(trial, metrics),
            )

        trial_of = {tuning(trial): trial for trial in trials}
        train_siblings(
            list(trial_of),
            self.images,
            self.config,
            self.ancestry,
            lambda tuning, outcome: ended(trial_of[tuning], outcome),
        )

    def packs(self, trials: Sequence[Trial], place: Place) -> list[list[Trial]]:
        """Who is trained beside whom on places of a kind."""
        config = self.config
        micro_batch = config.batch_size // config.accumulation
        image = 4 * 3 * self.images.preprocessing.image_size**2
        shared = 2 * config.batch_size * image  # a batch, and the next or what it was made of
        if self.ancestry is not None:
            shared += sum(each.numel() * each.element_size() for each in self.ancestry.state_dict().values())
        loads = [
            Load(
                trial,
                trial.seed if config.view_seed is None else config.view_seed,
                macs(trial.spec),
                kept_memory(trial.spec, averaged=config.ema > 0),
                step_memory(trial.spec, micro_batch),
            )
            for trial in trials
        ]
        most = 1 if config.asha else config.most_siblings  # ASHA stops Tune's trials, not members of them
        packs = pack(loads, Place(place.count, place.memory - shared), most)
        return [[load.trial for load in each.loads] for each in packs]


class Outcomes:
    """What becomes of the trials of a sweep: a line for each in the terminal, a row for each that did not finish.

    Args:
        keep: Called with those rows.
    """

    def __init__(self, inputs: SweepInputs, total: int, keep: Callable[[dict[str, Any]], None]) -> None:
        self.inputs, self.total, self.keep, self.ended = inputs, total, keep, 0

    def finished(self, trial: Trial, row: dict[str, Any]) -> None:
        """It is in the store."""
        self._print(trial, finished_text(row))

    def failed(self, trial: Trial, error: str, metrics: dict[str, Any], *, diverged: bool = False) -> None:
        """`metrics` are the last that it reported, if any."""
        self._print(trial, f"failed: {error}")
        self._keep(trial, "diverged" if diverged else "failed", error, metrics)

    def stopped(self, trial: Trial, metrics: dict[str, Any]) -> None:
        """Early, by the scheduler; not an error."""
        epoch, top1 = metrics.get("epoch", 0), metrics.get("top1", 0)
        self._print(trial, f"stopped early at epoch {epoch:g} with top-1 {top1:.2f} %")
        self._keep(trial, "stopped", None, metrics)

    def _print(self, trial: Trial, text: str) -> None:
        self.ended += 1
        print(trial_line(self.ended, self.total, trial.arm, trial.spec, trial.seed, trial.lr, text), flush=True)

    def _keep(self, trial: Trial, status: str, error: str | None, metrics: dict[str, Any]) -> None:
        self.keep(
            {
                "descendant": self.inputs.descendant(trial).name,
                "sweep": self.inputs.config.name,
                "status": status,
                "error": error,
                "arm": trial.arm,
                "width": trial.spec.width,
                "depth": trial.spec.depth,
                "seed": trial.seed,
                "lr": trial.lr,
                "epochs": self.inputs.config.epochs,
                "top1": metrics.get("top1"),
                "steps": metrics.get("step"),
                "seconds": metrics.get("seconds"),
            }
        )


def run_trials(
    inputs: SweepInputs,
    wanted: Sequence[Trial],
    before: Sequence[dict[str, Any]],
    on_start: Callable[[], None],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train what is wanted and not among the rows from before, on the cluster or in this process.

    Args:
        on_start: Called once the cluster has answered, before the first trial.
        keep: Called with a row for each trial that failed or was stopped early; those that finished are in the store.

    Raises:
        Interrupted: this process was asked to end.
    """
    config = inputs.config
    settled = {row["descendant"] for row in before}
    every, following, known = list(wanted), list[Trial](), Known()
    if config.lr_search:
        from ray_learngene.search import drawn_and_following

        known = _known(inputs, wanted, before)
        every, following = drawn_and_following(wanted, known, _begun(inputs, wanted, settled), config)
    left = [trial for trial in every if inputs.descendant(trial).name not in settled]
    total, count = len(wanted) * max(1, config.lr_search), len(left) + len(following)
    done = f", {total - count} already finished" if count < total else ""
    print(f"sweep {config.name}: {count} descendants to train{done}", flush=True)
    outcomes = Outcomes(inputs, count, keep)
    if count and not config.in_process:
        from ray_learngene.cluster_trials import train_on_cluster

        train_on_cluster(inputs, left, following, known, outcomes, on_start)
    else:
        on_start()
        _train_here(inputs, left, outcomes)


def _train_here(inputs: SweepInputs, left: Sequence[Trial], outcomes: Outcomes) -> None:
    """One pack after another in this process."""
    from ray_learngene.places import own_place

    def ended(trial: Trial, outcome: dict[str, Any] | RunError) -> None:
        if isinstance(outcome, RunError):
            outcomes.failed(trial, str(outcome), {}, diverged=isinstance(outcome, Diverged))
        else:
            outcomes.finished(trial, outcome)

    packs = inputs.packs(left, own_place()) if left else []
    print_packs(packs)
    try:
        for trials in packs:
            inputs.train(trials, lambda trial, metrics: print_message(metrics), ended)
    except Interrupted:
        raise Interrupted(outcomes.ended, outcomes.total, "descendants") from None


def print_packs(packs: Sequence[Sequence[Trial]]) -> None:
    """Say which trials share their images, if any do."""
    if largest := max((len(trials) for trials in packs if len(trials) > 1), default=0):
        print(f"up to {largest} of them train side by side, on images that are read once (--siblings)", flush=True)


def _known(inputs: SweepInputs, wanted: Sequence[Trial], before: Sequence[dict[str, Any]]) -> Known:
    """What earlier runs of the sweep tried."""
    known: Known = {trial.group: [] for trial in wanted}
    by_name = {row["descendant"]: row for row in before}
    for trial in wanted:
        for name, row in by_name.items():
            if inputs.descendant(replace(trial, lr=row["lr"])).name == name:
                known[trial.group].append((row["lr"], row["top1"]))
    return known


def _begun(inputs: SweepInputs, wanted: Sequence[Trial], settled: Collection[str]) -> list[Trial]:
    """What earlier runs of the sweep have not settled and left with a checkpoint, at whatever learning rate."""
    config = inputs.config
    left = {
        manifest.name.removeprefix(f"{config.name}/"): manifest.metadata["lr"]
        for manifest in Store(config.store, config.store_patience).manifests("checkpoint", config.name)
        if "lr" in manifest.metadata  # else an earlier version wrote it
    }
    begun = [(replace(trial, lr=lr), name) for name, lr in left.items() if name not in settled for trial in wanted]
    return [trial for trial, name in begun if inputs.descendant(trial).name == name]
