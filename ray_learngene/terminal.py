"""What goes to the terminal: progress lines and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH = 140  # of a table that goes to a file or another program


def show_progress(metrics: Mapping[str, Any]) -> None:
    """Print one line for what a training run reports: an epoch's end, or a step on the way there."""
    losses = "  ".join(
        f"{name.removesuffix('_loss') if name != 'loss' else 'loss'} {metrics[name]:.4f}"
        for name in ("loss", "distill_loss", "label_loss")
        if name in metrics
    )
    parts = [f"epoch {metrics['epoch']:6.2f} / {metrics['epochs']}"]
    if losses:
        parts += [losses, f"lr {metrics['lr']:.2e}"]
    if "top1" in metrics:
        parts.append(f"top-1 {metrics['top1']:6.2f} %")
    if "ema_top1" in metrics:
        parts.append(f"average's {metrics['ema_top1']:6.2f} %")
    if metrics["step"]:
        parts.append(f"{metrics['images_per_second']:,.0f} images/s")
    print("   ".join(parts), flush=True)


def print_table(table: Table) -> None:
    """Print a table, whole also where the output is no terminal."""
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=_WIDTH)).print(table)
