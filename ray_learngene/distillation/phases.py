"""The trainings of `learngene distill`: one, or two with `--untied-epochs`."""

from __future__ import annotations

from ray_learngene.config import DistillConfig, load_config
from ray_learngene.config.methods import written_options
from ray_learngene.errors import UserError
from ray_learngene.methods.any_size import AnySize
from ray_learngene.methods.registry import create_method
from ray_learngene.store.store import Store

SHARED = "-shared"  # what the name of the first learngene ends in


def phases(config: DistillConfig) -> tuple[DistillConfig, ...]:
    """Return what to train, in order: each is a distillation of its own, the last one has the configuration's name.

    With `untied_epochs` shared blocks are distilled first, under a range of depths that grows evenly. From them starts
    a training in which every layer has a block of its own. It weighs labels at least as much as the ancestry model.

    Raises:
        UserError: settings that do not fit one of the two.
    """
    if not config.untied_epochs:
        return (config,)
    options = written_options(config.method.strip(), AnySize.model_fields)
    if "untied" in options:
        raise UserError(f"--method {config.method}: --untied-epochs unties its layers: leave untied out")
    given = {name: getattr(config, name) for name in config.model_fields_set} | {"untied_epochs": 0}
    shared = {
        **given,
        "name": config.name + SHARED,
        "method": _written({**options, "growth": options.get("growth", "1")}),
    }
    untied = {
        **given,
        "method": _written({**options, "growth": "0", "untied": "true"}),
        "start": shared["name"],
        "warm_start": None,
        "epochs": config.untied_epochs,
        **({"alpha": min(config.alpha, 0.5)} if config.labels else {}),
    }
    both = load_config(DistillConfig, shared), load_config(DistillConfig, untied)
    for phase in both:
        create_method(phase.method)  # refuses options before anything is trained
    return both


def require_both(store: Store, config: DistillConfig) -> None:
    """Refuse to train the first part again where the second is made.

    Raises:
        UserError: the learngene is in the store, the one that it started from is not.
    """
    made, shared = config.name, config.name + SHARED
    if config.overwrite or not config.untied_epochs or not store.exists("learngene", made):
        return
    if not store.exists("learngene", shared):
        raise UserError(
            f"the learngene {made!r} is already in {store.uri}, but not {shared!r}, where --untied-epochs begins: "
            "choose another --name, or --overwrite to make both"
        )


def _written(options: dict[str, str]) -> str:
    return ":".join([AnySize.name, *(f"{name}={value}" for name, value in options.items())])
