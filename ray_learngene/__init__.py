"""Train one learngene, spawn a vision model for every budget.

The Python API is that of `ray_learngene.api`; its names are imported when they are first used, so that importing the
package is cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_learngene.api import *

__version__ = "0.1.0"
__all__ = [
    "Artefact",
    "Diverged",
    "Interrupted",
    "Model",
    "Store",
    "UserError",
    "bench",
    "distill",
    "evaluate",
    "expand",
    "expand_all",
    "export",
    "extract",
    "measure",
    "page",
    "plan",
    "pull",
    "shown_log",
    "sweep",
    "train_ancestry",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import ray_learngene.api

    return getattr(ray_learngene.api, name)
