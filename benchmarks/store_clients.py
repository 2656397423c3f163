"""python -m benchmarks.store_clients --before CHECKOUT [--mib 64] [--rounds 15] [--quick] [--out FILE.json]

What a change of the S3 client costs: the store of this checkout against that of another one, such as
`git worktree add CHECKOUT 71184e2`, whose client is botocore's own. Each side is a process that opens
its store once; the sides take turns on one SeaweedFS on loopback that is started for them, in a new order every round.

A row says how long the other checkout takes over how long this one does, as the median over the rounds: by the clock,
and by the CPU time of the client alone, which other programs on the machine disturb less. Goal: at least 0.95 by the
clock, and no more requests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from tests.s3_server import running_s3_server
from tests.store.proxy import Proxy

GOAL = 0.95
VOLUME_MB = 4096
SMALL = 200
LISTED = 2_000
SIDES = ("before", "now")


def main() -> None:
    args = arguments(__doc__, _add)
    if args.serve:
        return serve(args.serve, args.folder)
    facts = machine()
    mib, rounds = (8, 2) if args.quick else (args.mib, args.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for files in (1, 4):
            (folder / str(files)).mkdir()
            for number in range(files):
                content = os.urandom(mib // files * 2**20)
                (folder / str(files) / f"part-{number}.safetensors").write_bytes(content)
        with running_s3_server(folder / "s3", VOLUME_MB) as server:
            os.environ.update(server.environment())
            proxy = Proxy(server.endpoint)
            counted = {
                side: _requests(checkout, server.new_bucket(), folder, proxy)
                for side, checkout in zip(SIDES, (args.before, Path.cwd()), strict=True)
            }
            proxy.close()
            uri = f"s3://{server.new_bucket()}"
            with _side(args.before, f"{uri}/before", folder) as before, _side(Path.cwd(), f"{uri}/now", folder) as now:
                rows = [_row(what, before, now, counted, rounds) for what in OPERATIONS]
    publish("store_clients", args, facts, rows)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--mib", type=int, default=64, help="of an artefact, in one file and in four")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


Ask = Callable[[str], tuple[float, float]]


def _row(what: str, before: Ask, now: Ask, counted: dict[str, dict[str, int]], rounds: int) -> dict[str, Any]:
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}

    def ask(side: str, asked: Ask) -> float:
        seconds, used = asked(what)
        cpu[side].append(used)
        return seconds

    asked = {side: partial(ask, side, each) for side, each in zip(SIDES, (before, now), strict=True)}
    for each in asked.values():
        each()  # opens connections
    for used in cpu.values():
        used.clear()
    clock = in_turn(asked, rounds, shuffle=True)
    seconds, (ratio, cpu_ratio) = medians(clock), map(_ratio, (clock, cpu))
    print(what, f"{ratio:.2f} {cpu_ratio:.2f}", file=sys.stderr, flush=True)
    return {
        "what": what,
        "before (s)": seconds["before"],
        "now (s)": seconds["now"],
        "ratio": ratio,
        "of the fastest": min(clock["before"]) / min(clock["now"]),
        "CPU ratio": cpu_ratio,
        "requests before": counted["before"][what],
        "requests now": counted["now"][what],
        "goal": f">= {GOAL:g} ({'met' if ratio >= GOAL else 'missed'})",
        "raw_seconds": clock,
        "raw_cpu_seconds": cpu,
    }


def _ratio(numbers: dict[str, list[float]]) -> float:
    """The median of what the rounds say: each has both sides one right after the other."""
    return median(before / now for before, now in zip(numbers["before"], numbers["now"], strict=True))


@contextmanager
def _side(checkout: Path, uri: str, folder: Path) -> Iterator[Ask]:
    """A process of a checkout that does what it is asked to do, and says how long that took."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), "--serve", uri, "--folder", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout,
        env={**os.environ, "PYTHONPATH": f"{checkout}"},
    )  # fmt: skip
    assert process.stdin and process.stdout

    def ask(what: str) -> tuple[float, float]:
        print(what, file=process.stdin, flush=True)
        seconds, used = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        return seconds, used

    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait()


def _requests(checkout: Path, bucket: str, folder: Path, proxy: Proxy) -> dict[str, int]:
    """How many requests each operation takes, the second time."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    counted = {}
    with _side(checkout, f"s3://{bucket}/counted", folder) as ask:
        for what in OPERATIONS:
            ask(what)
            before = len(proxy.requests)
            ask(what)
            counted[what] = len(proxy.requests) - before
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    return counted


def serve(uri: str, folder: Path) -> None:
    """Do what the lines of the standard input name."""
    try:
        from ray_learngene.store.store import Store
    except ImportError:  # a revision before the folder of that name
        from ray_learngene.store import Store

    store = Store(uri)
    prepare(store, folder)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as target:
            operation = partial(OPERATIONS[line.strip()], store, folder, Path(target))
            clock, cpu = time.perf_counter(), time.process_time()
            operation()
            print(json.dumps([time.perf_counter() - clock, time.process_time() - cpu]), flush=True)


def prepare(store: Any, folder: Path) -> None:
    """What the operations read."""
    store.check(write=True)
    for files in (1, 4):
        store.publish("learngene", f"pulled-{files}", folder / str(files), {}, overwrite=True)
    store.objects.each(partial(store.objects.put, f"small/{number}", bytes(4096)) for number in range(SMALL))
    store.objects.each(partial(store.objects.put, f"listed/{number}", b"") for number in range(LISTED))
    store.objects.create("created", b"")


def _publish(files: int, store: Any, folder: Path, target: Path) -> None:
    store.publish("learngene", f"published-{files}", folder / str(files), {}, overwrite=True)


def _pull(files: int, store: Any, folder: Path, target: Path) -> None:
    store.download("learngene", f"pulled-{files}", target / "out")


def _upload(files: int, store: Any, folder: Path, target: Path) -> None:
    jobs = [partial(store.objects.upload, path, f"raw/{path.name}") for path in (folder / str(files)).iterdir()]
    store.objects.each(jobs, 8)


def _put(store: Any, folder: Path, target: Path) -> None:
    store.objects.each(partial(store.objects.put, f"small/{number}", bytes(4096)) for number in range(SMALL))


def _get(store: Any, folder: Path, target: Path) -> None:
    store.objects.read_many([f"small/{number}" for number in range(SMALL)])


def _singles(call: str, store: Any, folder: Path, target: Path) -> None:
    for number in range(50):
        if call == "put":
            store.objects.put(f"small/{number}", b"{}")
        elif call == "create":
            store.objects.create(f"created/{uuid.uuid4().hex}", b"{}")
        else:
            getattr(store.objects, call)(f"small/{number}")


OPERATIONS: dict[str, Callable[[Any, Path, Path], object]] = {
    "publish, 1 file": partial(_publish, 1),
    "publish, 4 files": partial(_publish, 4),
    "pull, 1 file": partial(_pull, 1),
    "pull, 4 files": partial(_pull, 4),
    "upload, 1 file": partial(_upload, 1),
    "upload, 4 files": partial(_upload, 4),
    f"put {SMALL} of 4 kB": _put,
    f"get {SMALL} of 4 kB": _get,
    f"list {LISTED}": lambda store, folder, target: store.objects.look("listed"),
    "50 puts, one by one": partial(_singles, "put"),
    "50 reads, one by one": partial(_singles, "read"),
    "50 creates, one by one": partial(_singles, "create"),
    "50 exists, one by one": partial(_singles, "exists"),
    "index": lambda store, folder, target: store.entries(),
}

if __name__ == "__main__":
    main()
