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
        print(
            f"exported {config.model} to {one.path / facts['file']} ({facts['format']}, {size})"
        )
        accuracy = (
            ""
            if compared["top1"] is None
            else (f"; top-1 {compared['top1']:.2f} %, timm {compared['timm_top1']:.2f} %")
        )
        print(
            f"{facts['compared_on']}: largest difference of a logit {compared['max_difference']:.2g}, same decision on "
            f"{compared['agreement']:.2f} %{accuracy}"
        )
        if facts["precision"] == "int8" and compared["top1"] is None:
            print("note: the accuracy of int8 was not measured: give --data")
