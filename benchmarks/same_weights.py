"""python -m benchmarks.same_weights --against REVISION [--only GROUP ...]

Train small models with another revision and with the tree at hand, and compare the SHA-256 of everything published.

A refactoring must not change a number. Each group below is a list of `python -m ray_learngene` command lines on the
digits. Both trees run it on this machine, each with a store of its own. Weights and soft labels are compared by the
SHA-256 of their files; histories, scores, parameters and FLOPs by value. The exit status is 1 if anything differs.

Only the command line is used, so modules may move. The commands of a group run one after another in one process,
which imports torch once. Results of the other revision are cached in the temporary folder, by commit, commands and
package versions. `--fresh` ignores that cache; `--fresh --against HEAD` on a clean tree shows whether two runs of one
revision are equal.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import importlib.metadata
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STORE = "store"  # below the folder in which a group runs
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "ray", "deepspeed", "pyarrow", "scikit-learn")
# begin a command that gets SIGTERM, or SIGKILL, once its first checkpoint is in the store
INTERRUPTED, KILLED = "interrupted: ", "killed: "
SIGTERM_STATUS = 143

_DATA = f"--store {STORE} --data digits --train-share 0.2 --val-share 0.2 --batch-size 64 --lr 8e-3 --warmup-epochs 0"
_MODEL = "{img_size: 8, patch_size: 2, embed_dim: 32, depth: 4, num_heads: 2, class_token: false, global_pool: avg}"
_ANCESTRY = f"ancestry {_DATA} --name vit --model deit_tiny_patch16_224 --model-args '{_MODEL}' --epochs 3"
_TEACHER = "--ancestry store:ancestries/vit"
_DISTILL = f"distill {_DATA} {_TEACHER} --preset nano --depth 4 --width 32 --epochs 2"
_SWEEP = f"sweep {_DATA} --learngene sws --epochs 1"
_EXTRACT = f"extract --store {STORE} --source store:learngenes/pretrained"
_SWS = "--method sws:stages=2-2"
_MIXED = "--mixup 0.8 --cutmix 1.0 --reprob 0.25 --ema 0.9 --accumulation 2 --alpha 0.5 --tau 2 --clip-grad 1"

_LONG = "--train-share 1 --epochs 4 --checkpoint-every 5"

_TRAINED = ("any-size", "wave", "tleg", "share-init", "supernet", "pretrained")
_EXTRACTED = ("weight-selection", "heur-lg", "auto-lg", "ligo", "wave:template=16")
_ARMS = (
    *("sws", "sws:expansion=random", "any-size@any-size", "wave:fit=5@wave", "tleg@tleg", "share-init@share-init"),
    *(
        "supernet@supernet",
        "pretrained:truncate=true@pretrained",
        "weight-selection@weight-selection",
        "heur-lg@heur-lg",
    ),
    *("auto-lg@auto-lg", "wave:template=16:fit=0@wave.template.16", "mimetic", "scratch"),
)
_BENCH = "{sws: {method: 'sws:stages=1-1'}, wave: {method: 'wave:fit=5', source: largest}, scratch: {method: scratch}}"


def _name(method: str) -> str:
    return re.sub(r"[^a-z0-9-]+", ".", method)


GROUPS: dict[str, list[str]] = {
    "methods": [
        f"{_ANCESTRY} --workers 0 --mixup 0.8 --ema 0.9",
        f"{_DISTILL} --workers 0 --name sws {_SWS}",
        f"{_DISTILL} --workers 0 --name mixed {_SWS} {_MIXED}",
        f"{_DISTILL} --workers 0 --name started --start sws {_SWS} --distillation hard --no-labels",
        *(f"{_DISTILL} --workers 0 --name {method} --method {method}" for method in _TRAINED),
        *(f"{_EXTRACT} --method {method} --name {_name(method)}" for method in _EXTRACTED),
        f"{_SWEEP} --name alone --in-process --siblings 1 --depths 3 --arms {' '.join(_ARMS)}",
        f"{_SWEEP} --name side-by-side --in-process --depths 3 --arms {' '.join(_ARMS)}",
        f"{_SWEEP} --name grown --in-process --depths 5 --arms ligo:fit=5@ligo any-size@any-size {_MIXED} {_TEACHER}",
    ],
    "soft-labels": [
        f"{_ANCESTRY} --workers 0",
        f"softlabels {_DATA} {_TEACHER} --preset nano --depth 4 --width 32 --epochs 1 --workers 0",
        f"{_DISTILL} --workers 0 --name sws {_SWS} --soft-labels",
        f"{_DISTILL} --workers 0 --name few {_SWS} --soft-labels --soft-labels-k 4 --soft-labels-dtype float32",
        f"{_SWEEP} --name taught --in-process --depths 2-3 --arms sws {_TEACHER} --soft-labels",
    ],
    "resumed": [
        f"{_ANCESTRY} --workers 0",
        f"{INTERRUPTED}{_DISTILL} --workers 0 --name sws {_SWS} --ema 0.9 --epochs 8 --checkpoint-every 1",
        f"{_DISTILL} --workers 0 --name sws {_SWS} --ema 0.9 --epochs 8 --checkpoint-every 1",
        f"{INTERRUPTED}{_SWEEP} --name sweep --in-process --depths 2-3 --epochs 8 --checkpoint-seconds 0",
        f"{_SWEEP} --name sweep --in-process --depths 2-3 --epochs 8 --checkpoint-seconds 0",
    ],
    "bench": [
        f"{_ANCESTRY} --workers 0",
        f"bench --store {STORE} --data digits --train-share 0.2 --val-share 0.2 --batch-size 64 --warmup-epochs 0 "
        f"{_TEACHER} --name bench --preset nano --depth 2 --depths 2 --seeds 1 --epochs 1 --tune-epochs 1 "
        f'--search-epochs 1 --lrs 3.2e-2 6.4e-2 1.28e-1 --tune-lrs 8e-3 --in-process --out report --arms "{_BENCH}"',
    ],
    "workers": [
        f"{_ANCESTRY} --workers 0",
        f"{_DISTILL} --workers 1 --name one-zero-0 {_SWS} --zero 0",
        f"{_DISTILL} --workers 2 --name two-zero-0 {_SWS} --zero 0 {_MIXED} --soft-labels",
        f"{KILLED}{_DISTILL} --workers 2 --name two-zero-1 {_SWS} --zero 1 {_LONG}",
        f"{_DISTILL} --workers 2 --name two-zero-1 {_SWS} --zero 1 {_LONG}",
    ],
    "sweep-on-ray": [
        f"{_ANCESTRY} --workers 0",
        f"{_DISTILL} --workers 0 --name sws {_SWS}",
        f"{_SWEEP} --name on-ray --depths 2-3 --seeds 2 --arms sws scratch {_TEACHER}",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="REVISION", help="the revision that this tree must equal")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=f"some of {', '.join(GROUPS)}")
    parser.add_argument("--fresh", action="store_true", help="train the other revision again, although it is cached")
    args = parser.parse_args()
    groups = args.only or list(GROUPS)
    before = results_of_revision(args.against, groups, fresh=args.fresh)
    differences = 0
    for group in groups:
        print(f"{group}: training with the tree at hand", flush=True)
        now = results_of_tree(ROOT, GROUPS[group])
        differences += compare(group, before[group], now)
    print(f"{differences} of the artefacts differ from {args.against}" if differences else f"all as in {args.against}")
    sys.exit(min(differences, 1))


def compare(group: str, before: dict[str, Any], now: dict[str, Any]) -> int:
    """Print a table row per artefact, and return how many differ."""
    print(
        f"{'':13} {'files':9} {'numbers':9} artefact ({group}: {before['seconds']:.0f} s, then {now['seconds']:.0f} s)"
    )
    differences = 0
    for name in sorted({*before["artefacts"], *now["artefacts"]}):
        one, other = (results["artefacts"].get(name) for results in (before, now))
        if one is None or other is None:
            files = numbers = "new" if one is None else "missing"
        else:
            files = "equal" if one["files"] == other["files"] else "DIFFER"
            numbers = "equal" if _within(one["numbers"], other["numbers"]) else "DIFFER"
        same = files == numbers == "equal"
        differences += not same
        print(f"{'' if same else '  ------->':13} {files:9} {numbers:9} {name}")
    return differences


def _within(before: Any, now: Any) -> bool:
    """Whether all that was there is there and equal; the tree at hand may say more, such as a new column."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and _within(value, now[key]) for key, value in before.items())
    return bool(before == now)


def results_of_revision(revision: str, groups: list[str], *, fresh: bool) -> dict[str, dict[str, Any]]:
    """Results of groups at a revision, cached in the temporary folder."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{revision}^{{commit}}"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    cache = Path(tempfile.gettempdir()) / f"same-weights-{getpass.getuser()}"
    cache.mkdir(exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    paths: dict[str, Path] = {}
    for group in groups:
        key = hashlib.sha256(json.dumps([GROUPS[group], versions]).encode()).hexdigest()[:16]
        paths[group] = cache / f"{commit[:12]}-{group}-{key}.json"
        if paths[group].exists() and not fresh:
            results[group] = json.loads(paths[group].read_text())
    missing = [group for group in groups if group not in results]
    if missing:
        with checked_out(commit) as tree:
            for group in missing:
                print(f"{group}: training with {revision}", flush=True)
                results[group] = results_of_tree(tree, GROUPS[group])
                paths[group].write_text(json.dumps(results[group]))
    return results


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A temporary git worktree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def results_of_tree(tree: Path, commands: list[str]) -> dict[str, Any]:
    """Run commands with the package of a tree, and return what they published, by artefact."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run_commands(tree, as_before(tree, commands), Path(folder))
        artefacts = published(Path(folder) / STORE)
    return {"artefacts": artefacts, "seconds": time.monotonic() - began}


def as_before(tree: Path, commands: list[str]) -> list[str]:
    """Commands that mean the same in every revision: scratch trains for the epochs of other arms, once the only way."""
    settings = tree / "ray_learngene/config/sweep.py"
    if not settings.exists() or "    scratch:" not in settings.read_text():
        return commands
    return [f"{command} --scratch epochs" if re.search(r"(^|: )sweep ", command) else command for command in commands]


def run_commands(tree: Path, commands: list[str], folder: Path) -> None:
    """Run commands with the package of a tree, in a folder that gets the store.

    Raises:
        SystemExit: A command failed; shows the end of its output.
    """
    ours = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", *(name for name in os.environ if name.startswith("LEARNGENE_"))}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "RAY_AUTH_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
    }
    words = [sys.executable, "-P", __file__, "--run", str(tree), json.dumps(commands)]
    ran = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if ran.returncode:
        raise SystemExit(f"{ran.stdout.decode(errors='replace')[-5000:]}\nthe commands above failed in {tree}")


def published(store: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 of the files and the numbers of every artefact in a store, read without the package's help."""
    found = {}
    for path in sorted(store.glob("*/**/manifest.json")):
        manifest = json.loads(path.read_text())
        folder = path.parent / (manifest["folder"] or manifest["version"])
        names = sorted(entry["path"] for entry in manifest["files"])
        found[str(path.parent.relative_to(store))] = {
            "files": {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                for name in names
                if name.endswith((".safetensors", ".parquet"))
            },
            "numbers": {
                key: _untimed(manifest["metadata"][key])
                for key in ("metrics", "history", "cost", "row")
                if key in manifest["metadata"]
            },
        }
    return found


def _untimed(value: Any) -> Any:
    """A value without what a clock or the load of the machine says."""
    if isinstance(value, dict):
        timed = re.compile("second|latency|^load$")
        return {key: _untimed(inner) for key, inner in value.items() if not timed.search(key)}
    return [_untimed(inner) for inner in value] if isinstance(value, list) else value


def run_here(tree: str, commands: list[str]) -> None:
    """Run command lines in this process, as `python -m ray_learngene` would.

    Raises:
        SystemExit: One failed, or ended before it could be interrupted.
    """
    import ray_learngene

    if not Path(ray_learngene.__file__).is_relative_to(tree):
        raise SystemExit(f"ray_learngene is imported from {ray_learngene.__file__}, not from {tree}")
    for command in commands:
        kind = next((kind for kind in (INTERRUPTED, KILLED) if command.startswith(kind)), "")
        words = shlex.split(command.removeprefix(kind))
        print(f"$ {kind}learngene {shlex.join(words)}", flush=True)
        before = _artefacts()
        status = _killed(words) if kind == KILLED else _run(words, interrupt=kind == INTERRUPTED)
        wanted = {INTERRUPTED: SIGTERM_STATUS, KILLED: -signal.SIGKILL}.get(kind, 0)
        if status != wanted:
            raise SystemExit(f"exit status {status}, not {wanted}")
        if kind and _artefacts() != before:
            raise SystemExit("it ended before it was interrupted")


def _run(words: list[str], *, interrupt: bool) -> object:
    """Run a command in this process, and return its exit status."""
    ended = threading.Event()
    if interrupt:
        target = partial(_at_checkpoint, _checkpoints(), ended.wait, lambda: os.kill(os.getpid(), signal.SIGTERM))
        threading.Thread(target=target, daemon=True).start()
    sys.argv = ["learngene", *words]
    try:
        runpy.run_module("ray_learngene", run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        ended.set()


def _killed(words: list[str]) -> int:
    """Run a command in a process of its own, which dies without warning, and return its exit status."""
    before = _checkpoints()
    process = subprocess.Popen([sys.executable, "-P", "-m", "ray_learngene", *words])

    def ended(seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode is not None

    _at_checkpoint(before, ended, process.kill)
    return process.wait()


def _at_checkpoint(before: set[Path], ended: Callable[[float], bool], act: Callable[[], None]) -> None:
    """Act once the store holds a new checkpoint; do nothing if training ends without one."""
    while not ended(0.01):
        if _checkpoints() - before:
            act()
            return


def _artefacts() -> set[Path]:
    """Trained models in the store."""
    return {path for kind in ("learngenes", "descendants") for path in Path(STORE, kind).glob("**/manifest.json")}


def _checkpoints() -> set[Path]:
    """Checkpoints in the store, of plain processes and of workers on Ray."""
    own, workers = "checkpoints/*/*/manifest.json", "runs/*/**/checkpoint_*/progress.json"
    return {path for pattern in (own, workers) for path in Path(STORE).glob(pattern)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_here(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
