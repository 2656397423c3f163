"""python -m benchmarks.families [--only PATTERN] [--results found.jsonl] [--out docs/families_tables.md]

Count which of timm's entry points can be a source, a student or a teacher, and which method works on which family.

No weights are needed: models are built on the meta device. `--results` keeps what is found, so that a run can continue.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import json
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Method
from ray_learngene.methods.registry import METHODS
from ray_learngene.models.build import build, shapes_of, spec_of
from ray_learngene.models.families.made import made
from ray_learngene.models.features import gives_features
from ray_learngene.models.layout import axes, chains
from ray_learngene.models.specs import Spec, size_of, spec_for

# the architectures whose sources are counted: names that begin so, with weights, that take a depth
_COUNTED = ("vit_", "deit", "flexivit", "beit", "eva", "naflexvit", "samvit", "test_vit", "aimv2")
_SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT (DINOv2)": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
    "Eva (DINOv3)": (
        "vit_small_patch16_dinov3",
        {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
    "BEiT": (
        "beit_base_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "embed_dim": 16, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4},
    ),
    "ConvNeXt": ("convnext_atto", {"depths": [2, 2, 4, 2], "dims": [8, 16, 24, 32]}),
    "LeViT (BatchNorm)": ("levit_128s", {}),
}

_PAGE = """# Tables of families

Made by `python -m benchmarks.families` with timm {version}. It builds models on the meta device of torch,
and runs every method on a small model of each family.

{summary}

- A *source* is a model whose size and blocks are found, so that a learngene can be taken from it. Others are
  sources at their own size alone, by `--method pretrained`.
- A *student* takes other depths, and every axis of its parameters that changes with the width has a label.
- A *teacher* has a classifier or gives features.

## Methods and families

{matrix}

## Classes of timm

{table}

## Why entry points are refused

{reasons}
"""


@dataclass
class Found:
    """What an entry point can be; a text says why not."""

    name: str
    kind: str
    weights: bool
    source: str = ""
    student: str = ""
    teacher: str = ""


def scan(names: list[str]) -> Iterator[Found]:
    """Try every entry point. Each is built at twice its own width: models of one class and layout differ there."""
    for name in names:
        model = made(name, {}).model
        weights = any(cfg.has_weights for cfg in [timm.models.get_pretrained_cfg(name)] if cfg)
        found = Found(name, type(model).__name__, weights)
        if not model.num_classes and not gives_features(model):  # type: ignore[operator]
            found.teacher = "neither a classifier nor features"
        try:
            spec_for(name)  # before another model is built
            spec = spec_of(model)
            if not chains(spec):
                raise UserError("no list of blocks follows the depth")
            stages = len(spec.depths or (1,))
            shapes_of(spec.replace(depth=max(stages, spec.depth // 2)))
            found.student = _labels(spec.replace(depth=stages))
            if "timm refuses" in found.student:  # such as a stage whose depth is a multiple
                found.student = _labels(spec)
        except (UserError, ValueError) as error:
            found.source = found.student = str(error)
        yield found


def _labels(spec: Spec) -> str:
    """Say why the axes of a model have no consistent labels; empty if they have, or if timm takes no width."""
    if not size_of(spec).widths:
        return ""
    try:
        twice = spec.replace(width=2 * spec.width, heads=2 * spec.heads)
        labels, before, after = axes(spec), shapes_of(spec), shapes_of(twice)
    except (UserError, ValueError) as error:
        return str(error)
    if before.keys() != after.keys():
        return "parameters appear or disappear with the width"
    for name, shape in before.items():
        for axis, have, want in zip(labels[name], shape, after[name], strict=True):
            if want != have and axis.kind == "fixed":
                return f"{name}: an axis has no label"
    return ""


def works(name: str, spec: Spec) -> str:
    """Say how a method works on a small model: yes, or the line in which it refuses."""
    method: Method = METHODS[name]()
    try:
        if not method.needs_learngene:
            method.expand(None, spec)
            return "yes"
        trained = name in ("ligo", "weight-selection", "heur-lg", "auto-lg", "pretrained")
        learngene = method.extract(build(spec) if trained else method.auxiliary(spec))
        method.expand(learngene, spec)
        return "yes"
    except UserError as error:
        said = (
            str(error)
            .replace(str(spec.architecture), "the architecture")
            .replace(f"{name} cannot", "the method cannot")
        )
        return f"no: {said}"


def table(found: list[Found]) -> str:
    """One row for every class of timm."""
    by_class: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        by_class[each.kind].append(each)
    lines = ["| timm class | entry points | source | student | teacher |", "|---|---|---|---|---|"]
    for kind, group in sorted(by_class.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        counts = [sum(not getattr(each, role) for each in group) for role in ("source", "student", "teacher")]
        lines.append(f"| {kind} | {len(group)} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def reasons(found: list[Found]) -> str:
    """Why entry points are refused as sources or as students, with timm's classes, most of them first."""
    lines = ["| refused as | entry points | why | timm classes |", "|---|---|---|---|"]
    for role in ("source", "student"):
        groups: dict[str, list[Found]] = defaultdict(list)
        for each in found:
            if getattr(each, role) and not (role == "student" and each.source):
                groups[_reason(getattr(each, role))].append(each)
        for why, group in sorted(groups.items(), key=lambda pair: -len(pair[1])):
            kinds = Counter(each.kind for each in group).most_common()
            names = ", ".join(kind for kind, _ in kinds[:8]) + (f" and {len(kinds) - 8} more" if len(kinds) > 8 else "")
            lines.append(f"| {role} | {len(group)} | {why} | {names} |")
    return "\n".join(lines)


def _reason(said: str) -> str:
    """What was said without the name of the entry point, its arguments and numbers."""
    if (twice := re.search(r"got multiple values for keyword argument", said)) is not None:
        return f"timm's entry point fixes its size: {twice[0]}"
    said = said.partition("; its own is ")[0]
    said = re.sub(r"^[\w.-]+( \([^:]*\))?: ", "", said).replace("timm refuses this size", "timm refuses another size")
    return re.sub(r"\d+", "N", said).replace("|", "/").strip()


def matrix() -> str:
    """Which method works on which family."""
    lines = [f"| method | {' | '.join(_SMALL)} |", "|---" * (len(_SMALL) + 1) + "|"]
    specs = [spec_for(name, classes=5, **arguments) for name, arguments in _SMALL.values()]
    notes: dict[str, int] = {}
    for name in METHODS:
        cells = []
        for spec in specs:
            said = works(name, spec.replace(image=32) if spec.architecture != "levit_128s" else spec)
            cells.append("yes" if said == "yes" else f"no ({notes.setdefault(said, len(notes) + 1)})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {said.removeprefix('no: ')}" for said, number in notes.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="pattern of entry points")
    parser.add_argument("--results", type=Path, help="JSON lines of what was found, to continue from")
    parser.add_argument("--out", type=Path, help="file to write the tables to")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    names = sorted(fnmatch.filter(timm.list_models(), options.only), key=lambda name: not name.startswith(_COUNTED))
    before = options.results.read_text().splitlines() if options.results and options.results.exists() else []
    found = [Found(**json.loads(line)) for line in before]
    known = {each.name for each in found}
    for each in scan([name for name in names if name not in known]):
        found.append(each)
        if options.results:
            with options.results.open("a") as file:
                file.write(f"{json.dumps(asdict(each))}\n")
        if each.source or each.student:
            print(f"{each.name}: {each.source or each.student}", flush=True)
    counted = [each for each in found if each.name.startswith(_COUNTED) and each.weights]
    sources, students, teachers = (
        sum(not getattr(one, role) for one in found) for role in ("source", "student", "teacher")
    )
    summary = (
        f"timm {timm.__version__}: of {len(found)} entry points {sources} can be sources, {students} students and "
        f"{teachers} teachers. Of the "
        f"{len(counted)} ViT-like ones with weights, {sum(not one.source for one in counted)} can be sources."
    )
    print(summary)
    with contextlib.redirect_stderr(io.StringIO()):
        text = _PAGE.format(
            version=timm.__version__, summary=summary, matrix=matrix(), table=table(found), reasons=reasons(found)
        )
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
