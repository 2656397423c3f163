"""`learngene page`: a page to choose a model by, of the sweeps of a store."""

from __future__ import annotations

from ray_learngene.config import PageConfig
from ray_learngene.pages.page import write_page


def print_page(config: PageConfig) -> None:
    """Write the page, and print where it is."""
    print(f"page: {write_page(config)}", flush=True)
