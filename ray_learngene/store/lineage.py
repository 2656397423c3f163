"""What the artefacts of a store were made from, and what the models behind one cost to train."""

from __future__ import annotations

from collections.abc import Iterable

from ray_learngene.errors import UserError
from ray_learngene.io.errors import Unavailable
from ray_learngene.store.index import KINDS
from ray_learngene.store.manifest import KIND_OF, Manifest
from ray_learngene.store.rows import mapping, numbers_of
from ray_learngene.store.store import Store

_UNITS = {"images": ("images",), "flops": ("flops", "teacher_flops"), "seconds": ("seconds",)}


def named_artefact(reference: str, store: Store) -> Manifest | None:
    """Return the artefact that a reference such as `store:ancestries/x` names; None if there is none in this store."""
    scheme, _, rest = reference.partition(":")
    folder, _, name = rest.partition("/")
    kind = KIND_OF.get(folder)
    if scheme != "store" or kind not in KINDS:
        return None
    try:
        return store.look_up(kind, name)
    except Unavailable:
        raise
    except UserError:  # a damaged manifest, or a name that no store can hold
        return None


def sources_of(manifest: Manifest) -> list[str]:
    """Return the references of the models that an artefact was made from or taught by."""
    metadata = manifest.metadata
    config, row, start = (mapping(metadata.get(name)) for name in ("config", "row", "start"))
    sources = [metadata.get("ancestry"), metadata.get("source"), config.get("ancestry")]
    if config.get("pretrained"):
        sources.append(config.get("model"))
    learngenes = (row.get("learngene"), start.get("learngene"))
    sources += [f"store:learngenes/{name}" for name in learngenes if isinstance(name, str)]
    return list(dict.fromkeys(text for text in sources if isinstance(text, str)))


def ancestry_costs(references: Iterable[str], store: Store) -> dict[str, float]:
    """Return the cost of training all ancestry models behind these references, each once: images, FLOPs and seconds.

    A learngene costs nothing here, only the models that it was made from. FLOPs include teacher forward passes. A model
    from elsewhere, such as one of timm's pretrained ones, costs nothing.
    """
    total, seen, left = dict.fromkeys(_UNITS, 0.0), set[str](), list(references)
    while left:
        reference = left.pop()
        manifest = None if reference in seen else named_artefact(reference, store)
        seen.add(reference)
        if manifest is None:
            continue
        left += sources_of(manifest)
        if manifest.kind != "learngene":
            for unit, value in training_costs(manifest).items():
                total[unit] += value
    return total


def training_costs(manifest: Manifest) -> dict[str, float]:
    """Return what one artefact cost to train; a descendant with its learngene and the fit to its size."""
    row = mapping(manifest.metadata.get("row"))
    facts = row or mapping(manifest.metadata.get("cost"))
    parts = ("", "fit_", "learngene_") if row else ("",)
    return {
        unit: sum(
            found[name]
            for part in parts
            for name in (f"{part}{column}" for column in columns)
            if (found := numbers_of(facts, name))
        )
        for unit, columns in _UNITS.items()
    }
