"""The origin of ancestry models and of artefacts in a store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from pydantic import ValidationError
from timm.models import get_pretrained_cfg

from ray_learngene.models.origin import Origin, data_name, license_of, origin_of_settings
from ray_learngene.store.lineage import named_artefact, sources_of
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.rows import mapping
from ray_learngene.store.store import Store
from ray_learngene.terminal import one_line

_LONGEST_CHAIN = 20  # models made of models made of models

log = logging.getLogger(__name__)


def origin_of(reference: str, store: Store, settings: Any = None, *, chain: int = 0) -> Origin:
    """Return the origin of the model that a reference of `load_ancestry` names; it may be a learngene of the store too.

    Args:
        settings: timm's settings of the model, if it is loaded.
        chain: How many models were made of this one.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "store":
        manifest = named_artefact(reference, store) if chain < _LONGEST_CHAIN else None
        return stored_origin(manifest, store, chain=chain + 1) if manifest else Origin()
    if scheme == "local-dir":
        return _with_card(Path(rest).expanduser() / "README.md", origin_of_settings(settings or {}))
    if scheme == "hf-hub":
        return _with_card(rest, Origin(base_models=(rest.partition("@")[0],)))
    known = get_pretrained_cfg(reference, allow_unregistered=True)
    return origin_of_settings(known.to_dict()) if known else Origin()


def stored_origin(manifest: Manifest, store: Store, *, chain: int = 0) -> Origin:
    """Return the origin of an artefact; of one from an earlier version, what follows from the models that it names."""
    metadata = manifest.metadata
    if "origin" in metadata:
        try:
            return Origin.model_validate(metadata["origin"])
        except ValidationError:
            return Origin()
    found = [
        Origin() if reference.startswith("local-dir:") else origin_of(reference, store, chain=chain)
        for reference in sources_of(manifest)  # of a folder, an artefact holds the name without the path
    ]
    data = mapping(metadata.get("config")).get("data")
    return Origin.join(found, data=data_name(data) if isinstance(data, str) else None)


def log_license(what: str, origin: Origin) -> None:
    """Log whether the licence of a model may forbid some use of what is made of it."""
    if origin.restricted:
        log.info(
            f"note: {what} is licensed under {origin.license}, which restricts its use: "
            "what is made of it inherits that licence"
        )


def log_license_kept(manifest: Manifest, stated: str | None) -> None:
    """Log whether a finished artefact has another licence than the one that is stated now."""
    kept = mapping(manifest.metadata.get("origin")).get("license")
    if stated and stated != kept:
        log.info(f"its licence stays {one_line(kept or 'not stated')}: --overwrite makes it again")


def _with_card(card: str | Path, origin: Origin) -> Origin:
    """Return what a model card states.

    Without one, a restrictive licence of the settings stays, and another is not known.

    timm copies the licence of an architecture's own weights into the settings of any weights of that architecture.
    """
    kept = origin.license if origin.restricted else None
    without = Origin(license=kept, base_models=origin.base_models)
    if isinstance(card, Path) and not card.is_file():
        return without
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data
        tags, base, stated = data.tags or [], data.base_model or [], license_of(data)
        ours = "learngene" in tags
    except Exception as error:  # the hub client's many errors, and a card that is no YAML
        log.debug("no licence is known of %s: %s", card, error)
        return without
    return Origin(
        license=stated or (None if ours else kept),
        base_models=origin.base_models or tuple(map(str, [base] if isinstance(base, str) else base)),
        datasets=tuple(map(str, data.datasets or ())) if ours and isinstance(data.datasets, list) else (),
    )
