"""Where weights come from: the models and images that they were made of, and the licence that follows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

from ray_learngene.terminal import one_line

# licences that allow every use; each other one restricts what is derived, or may do so
_PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc-by-4.0", "cc0-1.0"})
# identifiers of the Hugging Face Hub besides Creative Commons' own; a card names each other licence as "other"
_ON_HUB = _PERMISSIVE | {
    *("afl-3.0", "agpl-3.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bsl-1.0", "epl-2.0", "eupl-1.2", "gemma"),
    *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "llama2", "llama3", "mpl-2.0", "ms-pl", "openrail", "osl-3.0"),
    *("bigscience-openrail-m", "creativeml-openrail-m", "other", "unlicense", "wtfpl", "zlib"),
}
_UNKNOWN = (None, "", "unknown")

Line = Annotated[str, AfterValidator(lambda text: one_line(" ".join(text.split())))]  # cards come from outside


class Origin(BaseModel):
    """What weights were made of.

    Attributes:
        license: Licence of the weights, as the Hugging Face Hub names it; None if none is stated.
        base_models: Models on the Hugging Face Hub.
        datasets: Image sets, by name.
    """

    model_config = ConfigDict(frozen=True)

    license: Line | None = None
    base_models: tuple[Line, ...] = ()
    datasets: tuple[Line, ...] = ()

    @classmethod
    def join(
        cls,
        sources: Iterable[Origin],
        *,
        data: str | None = None,
        data_license: str | None = None,
        stated: str | None = None,
    ) -> Self:
        """The origin of weights that were trained on `data` from or with these sources.

        A restrictive licence of a source or of the images stays. A permissive one stays if every source has a licence;
        that of images alone is none of the weights.

        Args:
            stated: The licence that the user stated, which overrides what follows from the sources.
        """
        sources = list(sources)
        licenses = {source.license for source in sources}
        restrictive = set(filter(restricts, {*licenses, data_license}))
        kept = restrictive or (set() if None in licenses else licenses)
        return cls(
            license=stated or " AND ".join(sorted(filter(None, kept))) or None,
            base_models=_distinct(name for source in sources for name in source.base_models),
            datasets=_distinct([*(n for source in sources for n in source.datasets), *([data] if data else [])]),
        )

    @property
    def restricted(self) -> bool:
        """Whether the licence is known and may forbid some use."""
        return restricts(self.license)

    def card_license(self) -> dict[str, str]:
        """Return the licence as fields of a model card; none if it is not known."""
        if self.license is None:
            return {}
        identifier = self.license.lower().replace(" ", "-")
        if identifier in _ON_HUB or (identifier.startswith("cc-") and identifier == self.license.lower()):
            return {"license": identifier}
        return {"license": "other", "license_name": identifier}


def restricts(license: str | None) -> bool:
    """Return whether a licence, or one of several joined by AND, is known and may forbid some use."""
    return bool(license) and not _PERMISSIVE.issuperset(str(license).lower().split(" and "))


def license_of(card: Any) -> str | None:
    """Return the licence that the front matter of a card (`huggingface_hub.CardData`) states, if it names one."""
    license = card.get("license_name") or card.get("license")
    license = " AND ".join(sorted(map(str, license))) if isinstance(license, list) else license
    return license if isinstance(license, str) and license not in (*_UNKNOWN, "other") else None


def origin_of_settings(pretrained_cfg: dict[str, Any]) -> Origin:
    """Return the origin that timm's settings of pretrained weights state."""
    license, hub = pretrained_cfg.get("license"), pretrained_cfg.get("hf_hub_id")
    return Origin(
        license=license if isinstance(license, str) and license not in _UNKNOWN else None,
        base_models=(hub,) if isinstance(hub, str) else (),
    )


def data_name(data: str) -> str:
    """Return the name of an image set in a card: of `hfds/NAME` and `torch/NAME` the name, of a path its last part."""
    for scheme in ("hfds/", "torch/"):
        if data.startswith(scheme):
            return data.removeprefix(scheme)
    return Path(data.rstrip("/")).name or data


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
