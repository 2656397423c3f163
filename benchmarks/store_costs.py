"""python -m benchmarks.store_costs [--quick] [--before FILE.json] [--out FILE.json]

Counts what each command asks of a bucket: requests by kind, and megabytes up and down. The commands run one after the
other on the built-in digits with a small model, against a SeaweedFS on loopback behind a proxy that counts. Training
commands run in one process; the last one runs on Ray, whose own state takes requests as well (`--quick` leaves it out).

Numbers of requests do not depend on the machine, but for checkpoints: those are written every few minutes, and at the
end of every run at least. `--before` names the record of an earlier run, whose requests are shown next to these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, arguments, machine, publish
from tests.s3_recorder import Recorder, recorded
from tests.s3_server import running_s3_server

SMALL = "--data digits --train-share 0.1 --val-share 0.1 --epochs 1 --warmup-epochs 0 --batch-size 64"
MODEL = "{img_size: 8, patch_size: 2, embed_dim: 64, depth: 4, num_heads: 4, class_token: false, global_pool: avg}"
KINDS = ("GetObject", "ListBucket", "PutObject", "DeleteObject")


def commands(ray: bool) -> dict[str, list[str]]:
    """Words of the command lines, by what the table calls them."""
    distill = f"distill {SMALL} --ancestry store:ancestries/a --preset nano --depth 2 --method sws:stages=1-1"
    sweep = f"sweep {SMALL} --learngene g --depths 1,2 --arms sws --in-process"
    found = {
        "ancestry": f"ancestry {SMALL} --name a --model deit_tiny_patch16_224 --workers 0".split()
        + ["--model-args", MODEL],
        "distill": f"{distill} --name g --workers 0".split(),
        "sweep, 2 descendants": f"{sweep} --name s".split(),
        "the same again": f"{sweep} --name s".split(),
        "list": ["list"],
        "show": ["show", "learngenes/g"],
        "pull by name": ["pull", "learngenes/g"],
        "pull by limits": ["pull", "--max-params", "10M"],
        "gc": ["gc"],
    }
    return found | ({"distill on Ray": f"{distill} --name r --workers 1".split()} if ray else {})


def main() -> None:
    args = arguments(__doc__, lambda parser: parser.add_argument("--before", type=Path, help="an earlier record"))
    earlier = json.loads(args.before.read_text())["rows"] if args.before else []
    before = {row["command"]: row["requests"] for row in earlier}
    facts = machine()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_s3_server(Path(folder, "s3")) as server,
        recorded(server.endpoint) as recorder,
    ):
        environment = {**os.environ, **server.environment(), "AWS_ENDPOINT_URL": recorder.endpoint}
        environment |= {"PYTHONPATH": str(ROOT), "LEARNGENE_STORE": f"s3://{server.new_bucket()}/store"}
        rows = [
            {**_row(name, words, environment, Path(folder), recorder), "requests before": before.get(name, "")}
            for name, words in commands(not args.quick).items()
        ]
    publish("store_costs", args, facts, rows)


def _row(name: str, words: list[str], environment: dict[str, str], folder: Path, recorder: Recorder) -> dict[str, Any]:
    first = len(recorder.traffic)
    command = [sys.executable, "-m", "ray_learngene", *words]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{' '.join(words)}: {(ran.stdout + ran.stderr)[-3000:]}")
    traffic = recorder.traffic[first:]
    counted = Counter(action.removeprefix("s3:") for action, _, _ in traffic)
    others = sum(counted.values()) - sum(counted[kind] for kind in KINDS)
    up, down = (sum(sizes) / 1e6 for sizes in ([sent for _, sent, _ in traffic], [got for _, _, got in traffic]))
    print(name, dict(counted), file=sys.stderr, flush=True)
    return {
        "command": name,
        "requests": len(traffic),
        **{kind: counted[kind] for kind in KINDS},
        "others": others,
        "MB up": up,
        "MB down": down,
    }


if __name__ == "__main__":
    main()
