"""The files of a sweep in a store, next to its descendants."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_learngene.config.documents import first_error
from ray_learngene.errors import UserError
from ray_learngene.store.manifest import LEGAL, NAME
from ray_learngene.store.store import Store

RESULTS, PAGE, SETTINGS, PLAN = "results.parquet", "leaderboard.html", "sweep.json", "plan.json"


def sweep_file(name: str, file: str) -> str:
    """Return the path of a file of a sweep below the store's root.

    Raises:
        UserError: The name is not one that every store can hold.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not the name of a sweep: write NAME {LEGAL}")
    return f"sweeps/{name}/{file}"


_INSTEAD = "delete it, the sweep writes it again"


class _Settings(BaseModel):
    """What is read of it; an earlier version wrote no `scratch`."""

    model_config = ConfigDict(extra="allow")

    common: dict[str, Any] = {}
    budgets: dict[str, int] = {}
    config: dict[str, Any] = {}
    scratch: Literal["cost", "epochs"] = "epochs"


class _Planned(BaseModel):
    """Descendants of one size, of which `depths` are those of their stages."""

    model_config = ConfigDict(extra="allow")

    depths: list[int] = []


class _Plan(BaseModel):
    """What is read of it."""

    model_config = ConfigDict(extra="allow")

    descendants: list[_Planned]


def read_plan(store: Store, name: str) -> dict[str, Any] | None:
    """Return what `learngene plan --calibrate` said that a sweep would cost.

    None where nothing that can be read says so.
    """
    data = store.objects.read(sweep_file(name, PLAN))
    try:
        return _Plan.model_validate_json(data).model_dump() if data else None
    except ValueError:
        return None


def read_settings(store: Store, name: str) -> dict[str, Any] | None:
    """Return what sweep.json says of a sweep: what its descendants have in `common` and its `budgets`.

    None without one.

    Raises:
        UserError: it is damaged.
    """
    path = sweep_file(name, SETTINGS)
    found = store.read_object(path, _INSTEAD)
    try:
        return None if found is None else _Settings.model_validate(found).model_dump()
    except ValidationError as error:
        raise UserError(f"{store.objects.uri_of(path)} is damaged ({first_error(error)}): {_INSTEAD}") from None
