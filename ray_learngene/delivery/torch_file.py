"""A torch.export file (.pt2) of a timm model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ray_learngene.delivery.parity import Array, Run

METADATA = "learngene.json"  # an extra file in the archive
_KEPT = ("val",)  # of what is noted of a node: the shapes; all else are stack traces and paths


def save(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Save a traced model with facts about it, and without stack traces, which hold paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta = {name: value for name, value in node.meta.items() if name in _KEPT}
    buffer = io.BytesIO()  # torch itself ends the process where a disk is full
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(dict(metadata))})
    path.write_bytes(buffer.getbuffer())


def torch_run(path: Path) -> Run:
    """Return the logits of a torch.export file."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(images: Array) -> Array:
        logits: Array = module(torch.from_numpy(images)).numpy()
        return logits

    return run
