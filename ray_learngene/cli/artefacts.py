"""Parse KIND/NAME, as the command line names artefacts."""

from __future__ import annotations

from ray_learngene.errors import UserError
from ray_learngene.store.manifest import Kind

KINDS: dict[str, Kind] = {
    "learngenes": "learngene",
    "ancestries": "ancestry",
    "descendants": "descendant",
    "timings": "timing",
}


def parse_artefact(text: str) -> tuple[str, str]:
    """Read `learngenes/x` as (folder, name).

    Raises:
        UserError: the text does not begin with a folder of the store.
    """
    folder, _, name = text.strip("/").partition("/")
    folders = [*KINDS, "sweeps", "softlabels"]
    if folder not in folders or not name:
        raise UserError(f"{text!r}: write KIND/NAME, with KIND one of {', '.join(folders)}")
    return folder, name
