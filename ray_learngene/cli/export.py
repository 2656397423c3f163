"""`learngene export`: what was written, and how it compares with the timm model."""

from __future__ import annotations

from ray_learngene.config import ExportConfig
from ray_learngene.delivery.export import export
from ray_learngene.models.budgets import format_quantity


def print_exports(config: ExportConfig) -> None:
    """Export, and print the files with their comparison."""
    for one in export(config):
        facts, compared = one.facts, one.facts["compared"]
        size = format_quantity("memory", facts["bytes"])
        print(f"exported {config.model} to {one.path / facts['file']} ({facts['format']}, {size})")
        accuracy = (
            ""
            if compared["top1"] is None
            else (f"; top-1 {compared['top1']:.2f} %, timm {compared['timm_top1']:.2f} %")
        )
        what, alike = ("logit", "same decision on") if facts["classifies"] else ("feature", "cosine similarity")
        print(
            f"{facts['compared_on']}: largest difference of a {what} {compared['max_difference']:.2g}, {alike} "
            f"{compared['agreement']:.2f} %{accuracy}"
        )
        if facts["precision"] == "int8" and facts["classifies"] and compared["top1"] is None:
            print("note: the accuracy of int8 was not measured: give --data")
