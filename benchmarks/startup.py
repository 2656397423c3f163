"""python -m benchmarks.startup [--quick] [--out FILE.json]

Measures the start-up of the command line: `learngene --help` and `python -c "import ray_learngene"`, compared with
`python -c pass`, the start of the interpreter. Each runs in a new process. The three alternate and medians are
compared, so machine and file cache are the same for all (after one discarded round).
Goal: `learngene --help` below 0.5 s.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

from benchmarks.measure import arguments, in_turn, machine, medians, publish, seconds_of

GOAL_SECONDS = 0.5


def main() -> None:
    args = arguments(__doc__)
    facts = machine()
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import ray_learngene": [sys.executable, "-c", "import ray_learngene"],
        "learngene --help": [str(Path(sysconfig.get_path("scripts")) / "learngene"), "--help"],
    }
    sides = {
        name: partial(seconds_of, partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL))
        for name, command in commands.items()
    }
    in_turn(sides, 1)
    seconds = in_turn(sides, 3 if args.quick else 20)
    middle = medians(seconds)
    rows = [
        {
            "command": name,
            "seconds": middle[name],
            "over python -c pass": middle[name] / middle["python -c pass"],
            "goal": f"< {GOAL_SECONDS} s" if name == "learngene --help" else "",
            "met": str(middle[name] < GOAL_SECONDS) if name == "learngene --help" else "",
            "raw_seconds": seconds[name],
        }
        for name in commands
    ]
    publish("startup", args, facts, rows)


if __name__ == "__main__":
    main()
