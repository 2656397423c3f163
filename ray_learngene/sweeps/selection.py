"""Select specs from learngenes, budgets, depths and widths: `plan` prints them and `sweep` trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_learngene.config import SelectionConfig
from ray_learngene.config.numbers import parse_depths, parse_factors, parse_numbers
from ray_learngene.delivery.latency import Latency
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene
from ray_learngene.models.budgets import Budget, Candidate, candidates, largest_within
from ray_learngene.models.costs import costs, require_room, training_memory
from ray_learngene.models.search import Grid, largest_of_grids, parse_stages
from ray_learngene.models.sizes import outermost, sizes_of
from ray_learngene.models.specs import Spec
from ray_learngene.progress import Progress
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.store.timings import Timings
from ray_learngene.sweeps.arms import Arm
from ray_learngene.terminal import one_line


@dataclass(frozen=True)
class Selection:
    """The candidates and, of them, the specs to train, largest first, with the budgets that chose them.

    Without budgets every candidate is trained.

    Attributes:
        timings: Of the devices that budgets name.
    """

    candidates: tuple[Candidate, ...]
    specs: tuple[Candidate, ...]
    chosen: Mapping[str, Candidate]
    timings: Mapping[str, Timings] = field(default_factory=dict)

    def timing_notes(self) -> list[str]:
        """What the latencies of devices that budgets name come from, and how far predictions may be off."""
        return [
            f"latency@{device}: {known.text}, from {known.measured} measured sizes, predictions "
            f"± {100 * max(known.of(one.spec).error for one in self.candidates):.1f} %"
            for device, known in self.timings.items()
        ]

    def admitting(self, candidate: Candidate) -> list[str]:
        """The budgets that a candidate is within."""
        return [text for text in self.chosen if Budget.parse(text).admits(candidate.costs)]


def load_learngene(config: SelectionConfig, store: Store) -> StoredLearngene:
    """The learngene whose sizes are varied and whose preprocessing descendants inherit."""
    return StoredLearngene.load(store, config.learngene)


def check_texts(config: SelectionConfig) -> None:
    """Read budgets, depths, widths and arms, so that what is malformed is refused before images are."""
    for text in config.budgets:
        Budget.parse(text)
    if config.depths:
        parse_depths(config.depths)
    if config.widths:
        parse_numbers("widths", config.widths)
    for flag, factors in (("depth-factor", config.depth_factor), ("width-factor", config.width_factor)):
        if factors:
            parse_factors(flag, factors)
    if len(set(config.arms)) < len(config.arms):
        raise UserError(f"--arms {','.join(config.arms)}: give each arm once")
    for arm in config.arms:
        Arm.parse(arm, config.learngene)


def parse_arms(config: SelectionConfig, learngene: Learngene) -> tuple[Arm, ...]:
    """The arms; where none are given, the learngene's own method and scratch."""
    return tuple(Arm.parse(text, config.learngene) for text in config.arms or (learngene.method, "scratch"))


def select(
    config: SelectionConfig, source: Spec, classes: int, measure: Callable[[Spec], Latency], store: Store
) -> Selection:
    """The largest spec within each budget among the candidate depths and widths; all of them where there is no budget.

    Heads grow with the width, at the source's head size. Latencies of a device that a budget names come from its
    record in the store.

    Args:
        source: What the sizes are of: the spec of the learngene, or of an architecture.

    Raises:
        UserError: a budget cannot be read, nothing meets it, or there is no record of a device.
    """
    budgets = [Budget.parse(text) for text in config.budgets]
    changes = {"classes": classes, "image": config.image_size}
    if config.stage_depths:
        return _searched(config, source, budgets, changes)
    specs = _sizes(config, source, changes)
    with_latency = any(budget.needs_latency for budget in budgets)
    timings = {device: Timings.load(store, device) for budget in budgets for device in budget.devices}

    def cost(spec: Spec) -> dict[str, float]:
        progress.advance()
        timed = {f"latency@{device}": known.of(spec).milliseconds for device, known in timings.items()}
        return {**costs(spec), **({"latency": measure(spec).median_ms} if with_latency else {}), **timed}

    with Progress("costs of sizes", len(specs), "sizes") as progress:
        choices = candidates(specs, cost)
    if not budgets:
        return Selection(tuple(choices), tuple(choices), {})
    chosen = {budget.text: largest_within(budget, choices) for budget in budgets}
    specs_chosen = tuple(choice for choice in choices if choice in chosen.values())
    return Selection(tuple(choices), specs_chosen, chosen, timings)


def _sizes(config: SelectionConfig, source: Spec, changes: dict[str, Any]) -> list[Spec]:
    named = config.model_dump(include={"depths", "widths", "depth_factor", "width_factor"})
    return sizes_of(source, **named, changes=changes)


def _searched(config: SelectionConfig, source: Spec, budgets: list[Budget], changes: dict[str, Any]) -> Selection:
    """Select from all combinations of depths of stages and widths."""
    text = str(config.stage_depths)
    if not budgets or config.depths or config.depth_factor:
        raise UserError(f"--stage-depths {text}: it takes --budgets to choose by, and no --depths or --depth-factor")
    stages = parse_stages(text, source)
    depths = "-".join(str(each[0]) for each in stages) if len(stages) > 2 else str(sum(each[0] for each in stages))
    widths = sizes_of(source, depths=depths, widths=config.widths, width_factor=config.width_factor, changes=changes)
    with Progress("costs of widths", len(widths), "widths") as progress:
        grids = []
        for spec in widths:
            grids.append(Grid.of(spec, stages))
            progress.advance()
    chosen = {budget.text: largest_of_grids(budget, grids) for budget in budgets}
    found = tuple(sorted({one.spec: one for one in chosen.values()}.values(), key=lambda one: -one.costs["params"]))
    return Selection(found, found, chosen)


def require_reach(config: SelectionConfig, store: Store, arms: tuple[Arm, ...], known: StoredLearngene) -> None:
    """Expand the learngene once at each width and at the largest depth, before images are read.

    Raises:
        UserError: an arm's method is not the learngene's, a size is none, or the learngene does not grow to it.
    """
    for arm in arms:
        if arm.learngene == config.learngene:
            _require_method(arm, config.learngene, known.learngene)
    if config.stage_depths:
        parse_stages(config.stage_depths, known.learngene.spec)
    if config.budgets:  # they may leave out what does not fit
        return
    specs = _sizes(config, known.learngene.spec, {"image": config.image_size})
    for arm in arms:
        if arm.learngene == config.learngene:
            for spec in outermost(specs):
                _try(arm, known.learngene, config.learngene, spec, store)


def load_arms(
    config: SelectionConfig,
    store: Store,
    arms: tuple[Arm, ...],
    selection: Selection,
    known: StoredLearngene,
    seeds: range,
) -> dict[str, StoredLearngene]:
    """The learngenes of all arms by name, each expanded once at every size it is for.

    So an impossible expansion is refused before anything starts.

    Raises:
        UserError: a learngene is missing or was made by another method, or cannot become one of the specs.
    """
    learngenes = {config.learngene: known}
    expanded = set()
    for arm in arms:
        for choice in selection.specs:
            for seed in seeds:
                name = arm.learngene_of(choice.spec, seed)
                if (arm, choice.spec, name) in expanded:
                    continue
                expanded.add((arm, choice.spec, name))
                if name is not None and name not in learngenes:
                    learngenes[name] = StoredLearngene.load(store, name)
                learngene = learngenes[name].learngene if name else None
                if learngene:
                    _require_method(arm, name, learngene)
                    _require_preprocessing(arm, name, learngene, known.learngene)
                _try(arm, learngene, name, choice.spec, store)
    return learngenes


def _require_method(arm: Arm, name: str | None, learngene: Learngene) -> None:
    if learngene.method != arm.method.name:
        raise UserError(
            f"--arms {arm.text}: the learngene {name!r} was made by {learngene.method!r}, not by {arm.method.name!r}"
        )


def _try(arm: Arm, learngene: Learngene | None, name: str | None, spec: Spec, store: Store) -> None:
    """Expand to a spec once.

    Raises:
        UserError: the method cannot do it, the model does not fit into memory, or the learngene's tensors are not what
            its description says.
    """
    require_room(spec)
    try:
        arm.method.expand(learngene, spec)
    except UserError:
        raise
    except Exception as error:  # of timm, torch or the method, where description and tensors contradict each other
        if name is None:
            raise
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"the learngene {name!r} in {store.uri} does not expand ({reason}): its files do not fit together, make it "
            "again"
        ) from error


def _require_preprocessing(arm: Arm, name: str | None, learngene: Learngene, known: Learngene) -> None:
    """Descendants of one sweep see images normalised alike."""
    for key in ("mean", "std"):
        have, want = learngene.preprocessing.get(key), known.preprocessing.get(key)
        if have and want and list(have) != list(want):
            raise UserError(
                f"--arms {arm.text}: the learngene {name!r} was distilled with {key} {have}, the sweep's images have "
                f"{want}: sweep them apart"
            )


def cost_columns(spec: Spec, latency: Latency, micro_batch: int, *, checkpointed: bool = False) -> dict[str, Any]:
    """The costs of a spec as columns of the results table; training memory is that of one micro-batch."""
    return {
        **costs(spec),
        **latency_columns(latency),
        "training_memory": training_memory(spec, micro_batch, checkpointed=checkpointed),
    }


def latency_columns(latency: Latency) -> dict[str, Any]:
    """A latency and what it was measured on, as columns of the results table."""
    measured = asdict(latency)
    named = {"latency": "median_ms", "latency_p90": "p90_ms", "latency_wall": "wall_ms"}
    columns = {column: measured.pop(name) for column, name in named.items()}
    return {**columns, **{f"latency_{name}": value for name, value in measured.items()}}
