"""python -m benchmarks.store_scale [--quick] [--out FILE.json]

Measures the cost of `learngene list` and `learngene pull --max-params` in a store with many descendants, in seconds and
S3 requests. Every descendant has a manifest of realistic size: the row of a real sweep has 45 columns, its history an
entry per epoch. Manifests and notes are written as by `publish`. Weights are omitted, because neither command reads
those of more than one descendant.

On a local store: the first call, which finds no snapshot of the index and reads every manifest, and the median of later
calls. Both are timed in this process and as whole commands with the start of the interpreter. On S3: the requests to a
real server (SeaweedFS, of requirements-dev.txt), counted by a proxy. There the sizes are 64 and 100, because filling a
bucket takes longest.
Goal: below 1 s after the first call at 10,000 descendants, and a number of requests that does not grow with them.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import arguments, machine, publish, seconds_of
from ray_learngene.cli.catalog import print_list
from ray_learngene.cli.choose import select_descendant
from ray_learngene.config import ListConfig, PullConfig
from ray_learngene.store.manifest import MANIFEST, FileEntry, Manifest, version_of
from ray_learngene.store.store import Store
from tests.s3_server import running_s3_server
from tests.store.proxy import Proxy

EPOCHS = 10
COLUMNS = 45
ROUNDS = 3
ON_S3 = (64, 100)
LIMIT = "1.5M"


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = [_local(Path(folder), many) for many in ((20, 100) if args.quick else (100, 1_000, 10_000))]
        print(rows, file=sys.stderr, flush=True)  # now: the S3 part takes equally long
        with running_s3_server(Path(folder, "s3")) as server, _proxy(server.endpoint) as proxy:
            os.environ |= server.environment()
            bucket = server.new_bucket()
            on_s3 = {many: _on_s3(f"s3://{bucket}/{many}", many, server.endpoint, proxy) for many in ON_S3}
    rows[0]["raw_on_s3"] = on_s3
    print(on_s3)
    publish("store_scale", args, facts, rows)


def _local(folder: Path, many: int) -> dict[str, Any]:
    store = Store(str(folder / str(many)))
    _fill(store, many)
    first = seconds_of(partial(_list, store))
    listing = [seconds_of(partial(_list, store)) for _ in range(ROUNDS)]
    pulling = [seconds_of(partial(_choose, store)) for _ in range(ROUNDS)]
    command = [sys.executable, "-m", "ray_learngene", "list", "--store", store.uri]
    whole = [seconds_of(partial(subprocess.run, command, check=True, capture_output=True)) for _ in range(ROUNDS)]
    return {
        "descendants": many,
        "list, first (s)": first,
        "list (s)": median(listing),
        "pull: choice (s)": median(pulling),
        "list, whole command (s)": median(whole),
        "raw_list": listing,
        "raw_pull": pulling,
        "raw_command": whole,
    }


def _on_s3(uri: str, many: int, server: str, proxy: Proxy) -> dict[str, Any]:
    os.environ["AWS_ENDPOINT_URL"] = server
    _fill(Store(uri), many)
    _list(Store(uri))
    os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    counted: dict[str, Any] = {}
    for name, call in (("list", _list), ("pull: choice", _choose)):
        before = len(proxy.requests)
        call(Store(uri))
        counted[f"{name} (S3 requests)"] = len(proxy.requests) - before
    return counted


def _fill(store: Store, many: int) -> None:
    store.check(write=True)
    store.objects.each([partial(_add, store, number) for number in range(many)])


def _add(store: Store, number: int) -> None:
    """Write what publishing a descendant writes in addition to its files."""
    costs = {"params": 1_000_000 + number * 100, "macs": 10**8, "memory": 10**7, "latency": 1.5}
    row = {"descendant": f"d{number:05d}", "arm": "sws", "top1": 50 + number % 97 / 2, **costs}
    row |= {f"a_column_{column}": 12345.678 for column in range(COLUMNS - len(row))}
    files = [
        FileEntry(path=path, bytes=4_000_000, sha256=f"{number:064x}")
        for path in ("README.md", "config.json", "metrics.json", "model.safetensors")
    ]
    name = f"sweep-{number % 10}/d{number:05d}"
    manifest = Manifest(
        format=2,
        kind="descendant",
        name=name,
        version=version_of(files),
        created="2026-01-01T00:00:00+00:00",
        files=files,
        metadata={"row": row, "history": [{"epoch": n, "top1": 50.0, "val_loss": 1.5} for n in range(EPOCHS)]},
    )
    text = manifest.model_dump_json(indent=2).encode()
    store.index.note("descendant", name, text)
    store.objects.put(f"descendants/{name}/{MANIFEST}", text)


def _list(store: Store) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        print_list(ListConfig(store=store.uri))


def _choose(store: Store) -> str:
    return select_descendant(PullConfig(store=store.uri, max_params=LIMIT), store).name


@contextlib.contextmanager
def _proxy(endpoint: str) -> Iterator[Proxy]:
    proxy = Proxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


if __name__ == "__main__":
    main()
