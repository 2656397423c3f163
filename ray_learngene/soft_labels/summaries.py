"""What soft labels a store holds, told from their manifests: light enough for `learngene list`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ray_learngene.manifest import Manifest
from ray_learngene.store import Store


def summaries(store: Store) -> dict[str, dict[str, Any]]:
    """Every cache of a store by its key: what it depends on, how much is there and what that cost."""
    grouped: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in store.manifests("softlabels"):
        grouped[manifest.name.partition("/")[0]].append(manifest)
    return {
        key: {
            "facts": parts[0].metadata["facts"],
            "epochs": len({part.metadata["epoch"] for part in parts}),
            "views": sum(part.metadata["views"] for part in parts),
            "bytes": sum(part.bytes for part in parts),
            "cost": {name: sum(part.metadata["cost"][name] for part in parts) for name in ("images", "teacher_flops")},
            "created": max(part.created for part in parts),
        }
        for key, parts in grouped.items()
    }
