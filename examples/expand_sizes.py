"""python examples/expand_sizes.py STORE LEARNGENE     make ten depths of a learngene, and print what each costs

The learngene is read once. Nothing is trained, so give --data to `learngene expand` to see how good each is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import ray_learngene as lg


def main(store: str, learngene: str) -> None:
    """Expand a learngene to depths 3 to 12 in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        for model in lg.expand_all(learngene, store=store, depths=range(3, 13), out=Path(folder) / "sizes"):
            facts = json.loads((model.path / "metrics.json").read_text())
            network, _ = model.load()
            print(
                f"{model.path.name}  {facts['params']:>12,} parameters  {type(network).__name__}  {facts['accuracy']}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
