"""One odd document of a store never ends a command otherwise than by one line, nor hides what is good."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from ray_learngene.cli.main import main
from ray_learngene.store.manifest import FileEntry, version_of
from ray_learngene.store.store import Store
from ray_learngene.store.timings import Record, publish_record
from tests.fixtures.write_store import OLD_STORE

GOOD = "scratch-w16-d01-s0-ac92de07"  # descendant that is never changed
ODD: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**400, 2**63, -(10**30), 1e308, float("nan"), float("inf")),
    *("", "text", "nan", "..", "9" * 300, "2026-99-99T99:99:99", "\x1b[31m$\\frac{x$\n[bold]", "\ud800"),
    *([], {}, [1], {"a": 1}, [[[[]]]]),
]
NO_DOCUMENTS = [b"", b"{", b"null", b"[]", b"NaN", b"\xff\xfe{}", b"[" * 50_000, b'{"a": ' + b"9" * 5000 + b"}"]
RECORD = {
    "format": 1,
    "device": {"name": "pi"},
    "runtime": "onnxruntime 1",
    "precision": "fp32",
    "threads": 1,
    "batch": 1,
    "clock": "cpu",
    "sizes": [
        {"name": f"d{depth}", "latency_ms": depth, "p90_ms": 2 * depth, "spec": spec}
        for depth in (1, 2, 4)
        for spec in [{"width": 16, "depth": depth, "heads": 1, "image": 8, "patch": 2}]
    ],
}
READERS = ["list", "list --json", "show sweeps/sizes", "show sweeps/sizes --json", "pull --sweep sizes --max-params 1M"]
READERS += ["page", "gc"]
EXPAND, ON_DEVICE = "expand sws --depth 1", "expand sws --max-latency 10ms --device pi"
# document -> the commands that read it besides READERS, and what they need of it
DOCUMENTS: dict[str, list[str]] = {
    "descendants/sizes/sws-w16-d02-*/manifest.json": ["show descendants/sizes/sws-w16-d02-s0-e67e01fa"],
    "learngenes/sws/manifest.json": ["show learngenes/sws", EXPAND],
    "learngenes/sws/*/learngene.json": [EXPAND],
    "ancestries/vit/manifest.json": ["show ancestries/vit"],
    "timings/pi/*/manifest.json": [ON_DEVICE],
    "softlabels/*/*/manifest.json": [],
    "checkpoints/begun/sws-w16-d01-*/manifest.json": [],
    "sweeps/sizes/sweep.json": [],
    "sweeps/sizes/plan.json": [],
    "store.json": [EXPAND],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that an earlier version wrote, with a record of latencies and a plan."""
    store = Path(shutil.copytree(OLD_STORE, tmp_path_factory.mktemp("whole") / "store"))
    publish_record(Store(str(store)), Record.model_validate(RECORD), None, overwrite=False)
    (store / "sweeps/sizes/plan.json").write_text(json.dumps({"descendants": [{"seconds": 1.0}], "hours": 1.0}))
    shutil.rmtree(store / "index")
    return store


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places of a JSON value; of lists the first two members."""
    yield above
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in inner:
        yield from paths(each, (*above, key))


def mutated(document: bytes, draw: st.DataObject) -> bytes:
    if draw.draw(st.integers(0, 15)) == 0:
        return draw.draw(st.sampled_from(NO_DOCUMENTS))
    value = json.loads(document)
    *above, last = draw.draw(st.sampled_from([path for path in paths(value) if path]))
    odd = draw.draw(st.sampled_from(["missing", "superfluous", *ODD]))
    changed = inner = copy.deepcopy(value)
    for key in above:
        inner = inner[key]
    if odd == "missing":
        del inner[last]
    elif odd == "superfluous" and isinstance(inner, dict):
        inner["superfluous"] = inner[last]
    else:
        inner[last] = odd
    return json.dumps(changed).encode()


def signed(manifest: Path, changed: Path) -> None:
    """Make a manifest tell the size and the hash of a file that was changed."""
    facts, content = json.loads(manifest.read_text()), changed.read_bytes()
    for file in facts["files"]:
        if file["path"] == changed.name:
            file.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    facts["version"] = version_of([FileEntry(**file) for file in facts["files"]])
    manifest.write_text(json.dumps(facts))


def run(command: str, *more: object) -> tuple[int, str, str]:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main([*command.split(), *map(str, more)])
    return status, out.getvalue(), errors.getvalue()


@pytest.mark.parametrize("document", DOCUMENTS)
@seed(0)
@settings(max_examples=4, phases=[Phase.generate], database=None)
@given(draw=st.data())
def test_one_odd_document_is_one_line_and_hides_nothing(
    document: str, whole: Path, tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    store = Path(shutil.copytree(whole, folder / "store"))
    (path,) = store.glob(document)
    path.write_bytes(mutated(path.read_bytes(), draw))
    if path.name == "learngene.json":
        signed(path.parent.parent / "manifest.json", path)
    for command in [*READERS, *DOCUMENTS[document]]:
        out = {"pull": folder / "pulled", "page": folder / "page.html", "expand": folder / "expanded"}
        made = out.get(command.split()[0])
        status, said, errors = run(command, "--store", store, *(("--out", made) if made else ()))
        assert status in (0, 2, 3), command
        lines = errors.splitlines()
        ending = [line for line in lines if line.startswith("learngene: error: ")]
        assert len(ending) == (status != 0) and (not ending or lines[-1] == ending[0]), (command, errors)
        assert "Traceback" not in errors and "\x1b" not in said + errors and max(map(len, lines), default=0) < 1500
        if command.startswith("list"):
            assert status == 0 and GOOD in said, errors
        elif command.startswith("pull"):
            assert status == 0, errors
        elif command == "page":
            assert GOOD in (folder / "page.html").read_text()
        if made is not None and status:
            assert not made.exists()
    shutil.rmtree(folder)
