"""What a sweep was to cost, as `learngene plan --calibrate` measured, next to what it has cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ray_learngene.pages.columns import Record, number_of, records_of, size_of, text_of
from ray_learngene.progress import counted
from ray_learngene.store.costs import costed
from ray_learngene.store.lineage import named_artefact
from ray_learngene.store.rows import mapping
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import read_plan

_SECONDS = {"device_seconds": "own_device_seconds", "seconds": "own"}  # of a plan: of a record


def planned_and_spent(store: Store, name: str, records: Iterable[Record]) -> dict[str, Any] | None:
    """Return what a sweep was to cost and what its descendants have cost, by arm and size; None without a plan.

    Seconds are CPU or GPU seconds, as `unit` says. They are those by the clock, and `unit` is None, if the plan or a
    descendant is of a version that recorded no others.
    """
    plan = read_plan(store, name)
    if plan is None:
        return None
    models = [{**one, "stages": "-".join(map(str, one["depths"]))} for one in plan["descendants"]]
    trained = defaultdict[tuple[str | None, str], list[Record]](list)
    for one in records:
        trained[one["arm"], one["size"]].append(one)
    to_distil = mapping(plan.get("distillation"))
    learngene = named_artefact(f"store:learngenes/{to_distil.get('learngene')}", store) if to_distil else None
    distilled = mapping(learngene.metadata.get("cost")) if learngene else {}
    kinds = [(text_of(one, "arm"), size_of(one)) for one in models]
    costs = [*models, *filter(None, (to_distil, distilled))]
    known = all(number_of(one, "device_seconds") is not None for one in costs) and all(
        one["own_device_seconds"] is not None for kind in kinds for one in trained[kind]
    )
    wanted = "device_seconds" if known else "seconds"
    device = text_of(plan, "device")
    price, spent = number_of(plan, "price_per_hour"), sum(one["own"] or 0 for each in trained.values() for one in each)
    return {
        "unit": ("CPU" if (device or "").startswith("cpu") else "GPU") if known else None,
        "device": device,
        "load": number_of(plan, "load"),
        "price": number_of(plan, "price"),
        "price_spent": None if price is None else spent * (number_of(plan, "share") or 1) * price / 3600,
        "distillation": {
            "seconds": number_of(to_distil, wanted),
            "spent": number_of(distilled, wanted) or None,
            "load": number_of(distilled, "load"),
        }
        if to_distil
        else None,
        "models": [
            {
                "arm": kind[0],
                "size": kind[1],
                "count": number_of(one, "count"),
                "seconds": number_of(one, wanted),
                "trained": len(trained[kind]),
                "spent": _mean(each[_SECONDS[wanted]] for each in trained[kind]),
                "load": _mean(each["load"] for each in trained[kind]),
            }
            for one, kind in zip(models, kinds, strict=True)
        ],
    }


def spending_lines(store: Store, name: str) -> list[str]:
    """Return in words what a sweep and the distillation before it were to cost and have cost; none without a plan."""
    found = store.finished(name)
    both = planned_and_spent(store, name, records_of(costed([one.facts for one in found], store, name), found))
    if both is None:
        return []
    unit = f"{both['unit']} seconds" if both["unit"] else "seconds by the clock"
    parts = [("the distillation", both["distillation"] or {})]
    models = [one for one in both["models"] if one["seconds"] and one["spent"]]
    if models:
        sums = {key: sum(one["trained"] * one[key] for one in models) for key in ("seconds", "spent")}
        what = counted(sum(one["trained"] for one in models), "descendant")
        parts.append((what, {**sums, "load": _mean(one["load"] for one in models)}))
    return [
        f"{what}: {costs['seconds']:.4g} {unit} planned, {costs['spent']:.4g} spent "
        f"({100 * (costs['spent'] / costs['seconds'] - 1):+.1f} %), load {_load(both)} and {_load(costs)}"
        for what, costs in parts
        if costs.get("seconds") and costs.get("spent")
    ]


def _load(costs: Mapping[str, Any]) -> str:
    return "unknown" if costs["load"] is None else f"{costs['load']:.1f}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 3) if known else None
