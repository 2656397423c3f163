"""python examples/fits_the_device.py STORE LEARNGENE 8ms     time sizes here, make the largest that is fast enough

Three of its sizes are exported to ONNX and timed on onnxruntime. All other sizes are predicted from them.
"""

from __future__ import annotations

import sys

import ray_learngene as lg


def main(store: str, learngene: str, limit: str) -> None:
    """Publish a record of this machine under the name `here`, and expand within it."""
    gene = lg.Artefact(lg.Store(store), lg.Store(store).manifest("learngene", learngene))
    for record in lg.measure(gene, device="here", overwrite=True):
        for size in record.sizes:
            print(f"{size.name}: {size.latency_ms:.3g} ms")
    model = lg.expand(gene, max_latency=limit, device="here", out="fitting", overwrite=True)
    print(f"the largest model within {limit}: {model.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
