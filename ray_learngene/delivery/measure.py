"""python measure.py MODEL... [--out record.json]     time ONNX models on the device that will run them

This file needs Python 3.9, onnxruntime and numpy, and nothing else: copy it to the device together with the folders
that `learngene export` wrote. MODEL is such a folder, or an ONNX file. Every model first computes its golden file.
`learngene measure --import record.json` brings the record into a store.

All models take turns in short blocks, so that whatever else the machine does hits all alike. On one thread the latency
is CPU time: other work on the machine lengthens wall time by far more. Blocks go on until the medians of three parts of
them agree, or until the time is over. The record says which, and whether the machine was busy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar

import numpy as np

FORMAT = 1
BLOCK_SECONDS = 0.15
LEAST_ROUNDS = 10
AGREED = 0.02  # the medians of three parts of the blocks differ by no more
BUSY = 1.1  # wall time over CPU time on one thread
TOLERANCE = 1e-3  # of a golden logit in fp32, relative to the largest
METADATA = "learngene"
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16")
Name = TypeVar("Name")


class Failed(Exception):
    """What ends a measurement, in one line."""


def time_all(
    runs: Mapping[Name, Callable[[], Any]],
    seconds: float = 60.0,
    clock: str = "cpu",
    synchronize: Callable[[], Any] | None = None,
    block: float = BLOCK_SECONDS,
    least: int = 1,
) -> dict[Name, dict[str, Any]]:
    """Time functions, all taking turns in blocks.

    Args:
        runs: Functions by name; each computes once.
        seconds: When this time is over, no further round begins.
        clock: "cpu" or "wall", which of the two the latency is.
        synchronize: Waits until what was computed is there, for devices that compute on their own.
        least: Rounds that are made however long they take.

    Returns:
        By name: latency_ms, p90_ms, cpu_ms, wall_ms, wall_p90_ms, runs, rounds, spread and agreed.
    """
    wait = synchronize or (lambda: None)
    begun = time.perf_counter()
    calls: dict[Name, int] = {}
    for name, run in runs.items():
        for _ in range(2):
            run()
        wait()
        start = time.perf_counter()
        run()
        wait()
        calls[name] = max(1, int(block / max(time.perf_counter() - start, 1e-6)))
    blocks: dict[Name, list[Any]] = {name: [] for name in runs}
    while True:
        for name, run in runs.items():
            blocks[name].append(_block(run, calls[name], wait))
        rounds = len(blocks[next(iter(runs))])
        results = {name: _summary(found, clock) for name, found in blocks.items()}
        agreed = rounds >= LEAST_ROUNDS and all(result["agreed"] for result in results.values())
        if agreed or (rounds >= least and time.perf_counter() - begun >= seconds):
            return results


def _block(run: Callable[[], Any], count: int, wait: Callable[[], Any]) -> Any:
    """CPU and wall milliseconds of each of some calls, as an array [count, 2]."""
    taken = np.empty((count, 2))
    for index in range(count):
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        wait()
        taken[index] = time.process_time() - cpu, time.perf_counter() - wall
    return 1e3 * taken


def _summary(blocks: Sequence[Any], clock: str) -> dict[str, Any]:
    which = 0 if clock == "cpu" else 1
    medians = np.array([np.median(block[:, which]) for block in blocks])
    parts = [np.median(part) for part in np.array_split(medians, 3) if len(part)]
    spread = float(max(parts) / max(min(parts), 1e-6) - 1)  # finite where a coarse clock saw nothing pass
    all_calls = np.concatenate(blocks)
    cpu, wall = np.median(all_calls, axis=0)
    return {
        "latency_ms": _digits(np.median(all_calls[:, which])),
        "p90_ms": _digits(np.quantile(all_calls[:, which], 0.9)),
        "cpu_ms": _digits(cpu),
        "wall_ms": _digits(wall),
        "wall_p90_ms": _digits(np.quantile(all_calls[:, 1], 0.9)),
        "wall_over_cpu": _digits(all_calls[:, 1].sum() / max(all_calls[:, 0].sum(), 1e-9)),
        "runs": len(all_calls),
        "rounds": len(blocks),
        "spread": _digits(spread),
        "agreed": bool(len(blocks) >= LEAST_ROUNDS and spread <= AGREED),
    }


def _digits(value: Any) -> float:
    return float(f"{float(value):.5g}")


def machine(gpu: bool = False) -> dict[str, Any]:
    """Return what the device is: CPU, board, GPU, cores, governor, system.

    Instructions and cache tell CPUs of one name apart: "AMD EPYC" in a virtual machine has AVX-512 or not.
    """
    known = re.sub(r"^(?!flags|Features).*$", "", _read("/proc/cpuinfo"), flags=re.MULTILINE).split()
    found = {
        "cpu": cpu_name(),
        "board": _read("/proc/device-tree/model"),
        "gpu": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").split("\n")[0] if gpu else "",
        "cores": os.cpu_count(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "instructions": " ".join(one for one in _INSTRUCTIONS if one in known),
        "l2_cache": _read("/sys/devices/system/cpu/cpu0/cache/index2/size"),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {name: value for name, value in found.items() if value}


def cpu_name() -> str:
    """Return the CPU's model, as /proc/cpuinfo, the device tree or macOS names it."""
    text = _read("/proc/cpuinfo")
    for key in ("model name", "Model", "Hardware"):
        match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
        if match:
            return match[1].strip()
    return (
        _read("/proc/device-tree/model")
        or _output("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.processor()
        or platform.machine()
    )


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\x00\n ")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def load() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes, where the system tells."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return []


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process on as many of the fastest cores as it has threads, where the system allows it."""
    allowed: Set[int] = set()
    with suppress(AttributeError, OSError, ValueError):
        allowed = os.sched_getaffinity(0)
        speed = "/sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"
        order = sorted(allowed, key=lambda core: (int(_read(speed.format(core)) or 0), core))
        os.sched_setaffinity(0, order[-threads:])
    try:
        yield
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)


def onnx_file(path: str) -> str:
    """Return the ONNX file that is meant by a path, a folder's being model.onnx."""
    file = os.path.join(path, "model.onnx") if os.path.isdir(path) else path
    if not os.path.isfile(file):
        inside = [os.path.join(path, one) for one in sorted(os.listdir(path))] if os.path.isdir(path) else []
        exports = [one for one in inside if os.path.isfile(os.path.join(one, "model.onnx"))]
        if exports:
            raise Failed(f"{path} has several exports: choose {' or '.join(exports)}")
        raise Failed(f"{path} is no ONNX file, and no folder with a model.onnx: write it with `learngene export`")
    return file


def open_model(path: str, threads: int, provider: str) -> tuple[Any, dict[str, Any]]:
    """Return an onnxruntime session of a model, and what its file says of it."""
    try:
        import onnxruntime
    except ImportError:
        raise Failed("measuring needs onnxruntime: pip install onnxruntime numpy") from None
    if provider not in onnxruntime.get_available_providers():
        known = ", ".join(onnxruntime.get_available_providers())
        raise Failed(f"this onnxruntime has no {provider}: it has {known}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if threads > 1:  # threads that spin while they wait slow each other down on a busy machine
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(onnx_file(path), options, providers=[provider])
    except Failed:
        raise
    except Exception as error:
        raise Failed(f"{path} does not load in onnxruntime {onnxruntime.__version__}: {_reason(error)}") from None
    taken = session.get_providers()[0]  # the CPU where a GPU's libraries are missing
    if taken != provider:
        raise Failed(f"onnxruntime runs {path} on {taken}, not on {provider}: install what that needs")
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    return session, json.loads(text) if text else {}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def not_run(name: str, batch: int, error: Exception) -> str:
    """Say that a model does not take a batch."""
    return f"{name} does not run with {batch} images at a time: {_reason(error)}"


def clock_of(threads: int, gpu: bool) -> str:
    """Return which time a latency is: CPU time on one thread, if the system counts it finely; Windows does not."""
    start = now = time.process_time()
    while now == start:
        now = time.process_time()
    return "cpu" if threads == 1 and not gpu and now - start < 1e-3 else "wall"


def check(path: str, session: Any, facts: Mapping[str, Any]) -> int:
    """Compute the golden file next to a model again; how many of its inputs there are, 0 without one.

    Raises:
        Failed: the logits differ; says where first. Or the file is of another model.
    """
    golden = os.path.join(os.path.dirname(onnx_file(path)), "golden.npz")
    if not os.path.isfile(golden):
        return 0
    try:
        with np.load(golden) as file:
            inputs, expected = file["inputs"], file["logits"]
        found = session.run(None, {session.get_inputs()[0].name: inputs})[0]
        difference = np.abs(found - expected)
        scale = max(1.0, float(np.abs(expected).max()))
    except Exception as error:  # numpy and onnxruntime raise errors of many kinds
        raise Failed(
            f"{golden} is not the golden file of this model: {_reason(error)}: copy the whole folder of the export"
        ) from None
    int8 = facts.get("precision") == "int8"  # whose products round differently on other CPUs
    allowed = (0.05 if int8 else TOLERANCE) * scale
    wrong = np.argwhere(~(difference <= allowed))
    if len(wrong):
        image, label = (int(index) for index in wrong[0])
        raise Failed(
            f"{path} computes something else on this device: it differs first at golden input {image}, class {label}: "
            f"{found[image, label]:.5g} instead of {expected[image, label]:.5g}"
        )
    return len(inputs)


def random_input(session: Any, batch: int) -> dict[str, Any]:
    """Return an input of a batch of random values, as the model takes it."""
    wanted = session.get_inputs()[0]
    shape = [batch, *(size if isinstance(size, int) else 1 for size in wanted.shape[1:])]
    values = np.random.default_rng(0).random(shape, np.float32)
    return {wanted.name: (255 * values).astype(np.uint8) if "uint8" in wanted.type else values}


def slug(text: str) -> str:
    """Return a name that a store can hold, of any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "device"


def record(
    timed: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    *,
    device: str | None,
    runtime: str,
    provider: str,
    precision: str,
    threads: int,
    batch: int,
    clock: str,
    before: Sequence[float],
    started: str,
    gpu: bool = False,
) -> dict[str, Any]:
    """Return what was measured under one precision, with everything that decides how long a model takes."""
    here = machine(gpu)
    ratio = max(one["wall_over_cpu"] for one in timed.values())
    facts = ("architecture", "params", "spec", "source")
    return {
        "format": FORMAT,
        "device": {"name": device or slug(here.get("gpu") or here.get("board") or here["cpu"]), **here},
        "runtime": runtime,
        "provider": provider,
        "precision": precision,
        "threads": threads,
        "batch": batch,
        "clock": clock,
        "load": {"before": before, "after": load()},
        "busy": bool(clock == "cpu" and ratio > BUSY),
        "started": started,
        "sizes": [
            {"name": name, **{key: known[name][key] for key in facts if known[name].get(key)}, **result}
            for name, result in timed.items()
        ],
    }


def measure(
    paths: Sequence[str],
    *,
    device: str | None = None,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 60.0,
    provider: str = "CPUExecutionProvider",
) -> list[dict[str, Any]]:
    """Check and time models.

    Returns:
        Records, one for each precision.
    """
    before, started = load(), datetime.now(timezone.utc).isoformat(timespec="seconds")  # noqa: UP017
    opened: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
    for path in paths:
        session, facts = open_model(path, threads, provider)
        check(path, session, facts)
        name = facts.get("name") or os.path.basename(os.path.normpath(path))
        precision = facts.get("precision", "fp32")
        opened[precision, path if (precision, name) in opened else name] = session, facts
    import onnxruntime  # it is there: models were opened

    gpu = provider != "CPUExecutionProvider"
    clock = clock_of(threads, gpu)
    runs = {}
    for key, (session, _) in opened.items():
        try:
            runs[key] = partial(session.run, None, random_input(session, batch))
            runs[key]()
        except Exception as error:
            raise Failed(not_run(key[1], batch, error)) from None
    with nullcontext() if gpu else pinned(threads):
        timed = time_all(runs, seconds, clock)
    found = []
    for precision in sorted({key[0] for key in opened}):
        names = [name for each, name in opened if each == precision]
        found.append(
            record(
                {name: timed[precision, name] for name in names},
                {name: opened[precision, name][1] for name in names},
                device=device,
                runtime=f"onnxruntime {onnxruntime.__version__}",
                provider=provider,
                precision=precision,
                threads=threads,
                batch=batch,
                clock=clock,
                before=before,
                started=started,
                gpu=gpu,
            )
        )
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return a record as lines for a terminal."""
    said = [
        f"{found['device'].get('gpu') or found['device'].get('board') or found['device']['cpu']}, {found['runtime']}, "
        f"{found['precision']}, {found['threads']} thread{'s' * (found['threads'] != 1)}, "
        f"batch {found['batch']}, {found['clock']} time"
    ]
    width = max(len(one["name"]) for one in found["sizes"])
    for one in found["sizes"]:
        doubt = ""
        if not one["agreed"]:
            differ = f"not repeatable: parts differ by {100 * one['spread']:.1f} %"
            doubt = f"   {differ if one['spread'] > AGREED else 'too few rounds: give more --seconds'}"
        said.append(
            f"{one['name']:{width}}  {one['latency_ms']:10.4g} ms   p90 {one['p90_ms']:.4g}   "
            f"wall {one['wall_ms']:.4g}   {one['runs']} runs{doubt}"
        )
    if found["busy"]:
        said.append("the machine was busy: wall time is more than 1.1 times CPU time")
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description="Time ONNX models on this device.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder of an export, or an ONNX file")
    parser.add_argument("--out", metavar="FILE", help="write the record to this JSON file")
    parser.add_argument("--device", help="what to call this device; default: its own name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of the measurement")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="onnxruntime's execution provider")
    parser.add_argument("--check", action="store_true", help="compute the golden files again, and do not time")
    given = parser.parse_args(arguments)
    try:
        for name in ("threads", "batch", "seconds"):
            if not getattr(given, name) > 0:
                raise Failed(f"--{name} {getattr(given, name)}: give a number above 0")
        folder = os.path.dirname(given.out or "") or "."
        if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):  # said here, not after the measurement
            raise Failed(f"--out {given.out}: {folder} is no folder that can be written to")
        if os.path.isdir(given.out or ""):
            raise Failed(f"--out {given.out} is a folder: name a file")
        if given.check:
            for path in given.models:
                count = check(path, *open_model(path, given.threads, given.provider))
                print(f"{path}: {count} golden inputs agree" if count else f"{path}: there is no golden.npz next to it")
            return 0
        found = measure(
            given.models,
            device=given.device,
            threads=given.threads,
            batch=given.batch,
            seconds=given.seconds,
            provider=given.provider,
        )
        if given.out:
            with open(f"{given.out}.partial", "w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, "records": found}, file, indent=2)
            os.replace(f"{given.out}.partial", given.out)
    except (Failed, OSError) as error:
        print(f"measure.py: error: {error}", file=sys.stderr)
        return 2
    for one in found:
        print("\n".join(lines(one)))
    if given.out:
        print(f"written to {given.out}: learngene measure --import {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
