"""The card of an image set: `README.md` at its root, whose front matter may state a licence, as on the Hub."""

from __future__ import annotations

import logging

from ray_learngene.models.origin import Origin, license_of

CARD = "README.md"
_LARGEST = 2**20  # bytes

log = logging.getLogger(__name__)


def stated_license(place: str) -> str | None:
    """Return the licence that the card of an image set at a path or URI states; None without one."""
    from ray_learngene.io.objects import Objects  # only here: named image sets need no client of a storage

    try:
        content = Objects(place).read(CARD, _LARGEST)
        if content is None:
            return None
        from huggingface_hub import DatasetCard  # only here: most sets have no card

        return license_of(DatasetCard(content.decode(), ignore_metadata_errors=True).data)
    except Exception as error:  # storages' and the card reader's many errors: nothing needs a card to train
        log.debug("no licence is known of %s: %s", place, error)
        return None


def card_of(license: str) -> str:
    """Return a card that states this licence, and nothing else."""
    from huggingface_hub import DatasetCardData

    return f"---\n{DatasetCardData(**Origin(license=license).card_license()).to_yaml()}\n---\n"  # type: ignore[arg-type]
