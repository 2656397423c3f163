"""python -m benchmarks.store_costs [--quick] [--before FILE.json] [--out FILE.json]

Counts what each command asks of a bucket: requests by kind, and megabytes up and down. The commands run one after the
other on the built-in digits with a small model, against a SeaweedFS on loopback behind a proxy that counts. Training
commands run in one process, but one distillation on Ray, whose own state takes requests as well (`--quick` leaves it
out).

Numbers of requests do not depend on the machine, but for checkpoints: those are written every few minutes, and at the
end of every run at least. `--before` names the record of an earlier run, whose requests are shown next to these.
"""

from __future__ import annotations

import json
import os
import shlex
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


TEACHER = "--ancestry store:ancestries/a --preset nano --depth 2"
DISTILL = f"distill {SMALL} {TEACHER} --method sws:stages=1-1"
SWEEP = f"sweep {SMALL} --learngene g --depths 1,2 --arms sws --in-process --name s"
ARMS = "{sws: {method: 'sws:stages=1-1'}, scratch: {method: scratch, tune: full}}"
ONCE = "--seeds 1 --tune-epochs 1 --search-epochs 1 --search-more 0 --front 1"
ON_RAY = "distill on Ray"
# Command lines by what the table calls them, in the order in which they run.
COMMANDS = {
    "ancestry": f'ancestry {SMALL} --name a --model deit_tiny_patch16_224 --workers 0 --model-args "{MODEL}"',
    "distill": f"{DISTILL} --name g --workers 0",
    "sweep, 2 descendants": SWEEP,
    "the same again": SWEEP,
    "list": "list",
    "show": "show learngenes/g",
    "pull by name": "pull learngenes/g",
    "pull by limits": "pull --max-params 10M",
    "page": "page",
    "plan": "plan --learngene g --depths 1,2",
    "expand": "expand g --depth 1",
    "gc": "gc",
    ON_RAY: f"{DISTILL} --name r --workers 1",
    "extract": "extract --source store:ancestries/a --method weight-selection --name x",
    "softlabels, 1 epoch": f"softlabels {SMALL} {TEACHER} --workers 0",
    "bench, 2 arms": f'bench {SMALL} {TEACHER} --name b --in-process --depths 1 {ONCE} --arms "{ARMS}"',
}


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
            {**_row(name, line, environment, Path(folder), recorder), "requests before": before.get(name, "")}
            for name, line in COMMANDS.items()
            if name != ON_RAY or not args.quick
        ]
    publish("store_costs", args, facts, rows)


def _row(name: str, line: str, environment: dict[str, str], folder: Path, recorder: Recorder) -> dict[str, Any]:
    first = len(recorder.traffic)
    command = [sys.executable, "-m", "ray_learngene", *shlex.split(line)]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{line}: {(ran.stdout + ran.stderr)[-3000:]}")
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
