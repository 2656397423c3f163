"""`learngene plan`: which sizes meet which budget, and what a sweep will cost."""

from __future__ import annotations

from ray_learngene.config import DistillConfig, PlanConfig
from ray_learngene.config.base import load_config
from ray_learngene.distillation.calibration import plan_distillation
from ray_learngene.errors import UserError
from ray_learngene.models.budgets import format_quantity
from ray_learngene.models.costs import training_memory
from ray_learngene.progress import counted
from ray_learngene.store.rows import measured_on
from ray_learngene.store.store import Store
from ray_learngene.sweeps import plan as sweeps
from ray_learngene.sweeps.calibration import SweepCost
from ray_learngene.sweeps.selection import Selection, latency_columns
from ray_learngene.terminal import Table, print_table


def plan(config: PlanConfig) -> sweeps.Plan:
    """Plan a sweep, with the distillation of its learngene if that has a recipe and is not in the store yet.

    Without a learngene: select among the sizes of a preset or of a timm entry point.

    Raises:
        UserError: a budget that nothing meets, or whatever the distillation or the sweep would refuse.
    """
    if not config.learngene:
        return sweeps.plan_student(config)
    if not config.distill:
        return sweeps.plan(config)
    sweeps.sweep_settings(config)  # refuses its settings before the distillation is measured
    places = {"store": config.store} | ({"address": config.address} if config.address else {})
    recipe = load_config(DistillConfig, places, config.distill)
    if recipe.name != config.learngene:
        raise UserError(
            f"--distill {config.distill}: it makes the learngene {recipe.name!r}, not {config.learngene!r}, of which "
            "the sweep is"
        )
    store = Store.of(config)
    store.check(write=False)
    if store.exists("learngene", recipe.name):
        return sweeps.plan(config)
    return sweeps.plan(config, *plan_distillation(recipe, config.price_per_hour))


def print_plan(config: PlanConfig) -> None:
    """Print which specs are within which budget, which of them a sweep trains, and what it will cost."""
    planned = plan(config)
    _print_sizes(config, planned)
    for note in (*planned.selection.timing_notes(), *planned.outside):
        print(f"note: {note}")
    if config.learngene:
        _print_training(config, planned)
    if planned.cost:
        _print_cost(planned.cost, planned.learngene_seconds)


def _print_sizes(config: PlanConfig, planned: sweeps.Plan) -> None:
    """Print the sizes with their costs, and which of them each budget chose."""
    selection, micro_batch = planned.selection, config.batch_size // config.accumulation
    what = f"sizes from learngene {config.learngene}" if config.learngene else _of_architecture(selection)
    table = Table(title=what, title_justify="left", title_style="bold")
    timed = bool(planned.latencies or selection.timings)
    columns = ("width", "depth", "parameters", "MACs", "inference memory", "training memory", "latency", "p90")
    for name in columns if timed else columns[:-2]:
        table.add_column(name, justify="right")
    for text in selection.chosen:
        limits = text.split(",")
        table.add_column("\n".join(limits), justify="center", min_width=max(map(len, limits)))
    for candidate in selection.candidates:
        latency = planned.latencies.get(candidate.spec)
        cells = [
            str(candidate.spec.width),
            candidate.spec.layers,
            format_quantity("params", candidate.costs["params"]),
            format_quantity("macs", candidate.costs["macs"]),
            format_quantity("memory", candidate.costs["memory"]),
            format_quantity(
                "memory", training_memory(candidate.spec, micro_batch, checkpointed=config.grad_checkpointing)
            ),
        ]
        if timed:
            cells += [
                format_quantity("latency", latency.median_ms if latency else candidate.costs.get("latency")),
                format_quantity("latency", latency.p90_ms if latency else None),
            ]
        within = selection.admitting(candidate)
        for text, chosen in selection.chosen.items():
            mark = "trained" if config.learngene else "chosen"
            cells.append(mark if chosen is candidate else "✓" if text in within else "")
        table.add_row(*cells, style=None if candidate in selection.specs else "dim")
    print_table(table)
    measured = [measured_on(latency_columns(one)) for one in planned.latencies.values()]
    latency_text = f"latency: {measured[0]}; " if measured else ""
    print(f"{latency_text}training memory: a micro-batch of {micro_batch} in fp32")


def _of_architecture(selection: Selection) -> str:
    """Return the title of the sizes of an architecture."""
    spec = selection.candidates[0].spec
    classes = counted(spec.classes, "class") if spec.classes else "features"
    return f"sizes of {spec.architecture or 'the plain vision transformer'}, {spec.image.words}, {classes}"


def _print_training(config: PlanConfig, planned: sweeps.Plan) -> None:
    """Print how many descendants a sweep trains, and their FLOPs."""
    selection = planned.selection
    counts = (
        f"{counted(len(selection.specs), 'size')} x {counted(planned.arms, 'arm')} x {counted(config.seeds, 'seed')}"
    )
    if config.lr_search:
        counts += f" x {counted(config.lr_search, 'learning rate')}"
    if planned.steps is None:
        cost = f"together about {planned.flops:.3g} training FLOPs an image (give --data)"
    else:
        cost = (
            f"each {counted(config.epochs, 'epoch')} = {counted(planned.steps, 'step')} = "
            f"{counted(planned.steps * config.batch_size, 'image')}; "
            f"together about {planned.flops:.3g} training FLOPs"
        )
    if planned.scratch_epochs:
        least, most = min(planned.scratch_epochs.values()), max(planned.scratch_epochs.values())
        epochs = (f"{least} to " if least < most else "") + counted(most, "epoch")
        cost += f"; arms without a learngene {epochs}, at equal cost (--scratch cost)"
    if config.ancestry:
        cost += ", without those of the ancestry model that teaches"
    print(f"{counted(planned.descendants, 'descendant')} ({counts}), {cost}")


def _print_cost(cost: SweepCost, learngene_seconds: float | None) -> None:
    """Print the hours and the money that a calibrated sweep will cost."""
    unit = "CPU" if cost.device.startswith("cpu") else "GPU"
    table = Table(title=f"cost, by steps measured on {cost.device}", title_justify="left", title_style="bold")
    for name in ("arm", "width", "depth", "descendants", f"{unit}-hours each", f"{unit}-hours", "price"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    if distilled := cost.distillation:
        hours = distilled.device_hours
        price = "-" if distilled.price is None else _money(distilled.price)
        table.add_row("distillation", "", "", "", f"{hours:.3g}", f"{hours:.3g}", price)
    for one in cost.descendants:
        each = cost.share * one.seconds / 3600
        price = "-" if cost.price_per_hour is None else _money(each * one.count * cost.price_per_hour)
        table.add_row(
            *(one.arm, str(one.spec.width), one.spec.layers, str(one.count)),
            *(f"{each:.3g}", f"{each * one.count:.3g}", price),
        )
    print_table(table)
    if learngene_seconds is not None:
        print(f"the learngene has cost {learngene_seconds / 3600:.3g} hours of its workers")
    price = "" if cost.price is None else f", price {_money(cost.price)}"
    print(
        f"the sweep: {cost.device_hours:.3g} {unit}-hours, {cost.hours:.3g} hours with {cost.places} at a time{price}; "
        f"{cost.device_seconds:.4g} {unit} seconds; load while measuring {cost.load:.1f}"
    )
    if distilled:
        hours, whole = distilled.seconds / 3600, distilled.device_hours + cost.device_hours
        price = "" if distilled.price is None else f", price {_money(distilled.price + (cost.price or 0))}"
        print(
            f"the distillation: {hours:.3g} hours with {counted(distilled.workers, 'worker')}, "
            f"{distilled.device_seconds:.4g} {unit} seconds; "
            f"with the sweep {whole:.3g} {unit}-hours, {hours + cost.hours:.3g} hours{price}"
        )


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}"
