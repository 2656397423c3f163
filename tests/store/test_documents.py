"""Documents from outside with odd contents: one line that names the file, or the others are read without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from timm.models import save_for_hf

from ray_learngene.config import EvaluateConfig
from ray_learngene.config.documents import parse_json, parse_object, parse_yaml
from ray_learngene.delivery.evaluate import evaluate_model
from ray_learngene.errors import RunError, UserError
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import PRESETS
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import read_settings
from ray_learngene.training.checkpoints import PROGRESS_FILE, Progress
from ray_learngene.training.deepspeed_engine import read_user_config
from tests.command_line import learngene
from tests.store.folders import make_folder, row

NO_DOCUMENTS: dict[str, bytes] = {
    "nested too deeply": b"[" * 100_000 + b"]" * 100_000,
    "not UTF-8 text": b"\xff\xfe{}",
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "not JSON": b"{",
    "not a JSON object": b"[1, 2]",
}
DIGITS = [str(digit) for digit in range(10)]
SPEC = PRESETS["nano"].replace(depth=2)
COST = {"seconds": 5.0, "images": 640, "flops": 10, "teacher_flops": 3}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text and "\x1b" not in text and len(text) < 1000
    return text


@pytest.mark.parametrize("why", NO_DOCUMENTS)
def test_what_is_no_document_is_refused_in_one_line_everywhere(why: str, tmp_path: Path) -> None:
    document = NO_DOCUMENTS[why]
    with pytest.raises(ValueError, match=why):
        parse_object(document)
    store = Store(str(tmp_path / "store"))
    store.objects.put("sweeps/s/sweep.json", document)
    with pytest.raises(UserError, match=f"sweep.json is damaged .*{why}") as error:
        read_settings(store, "s")
    one_line(error)
    (tmp_path / PROGRESS_FILE).write_bytes(document)
    with pytest.raises(RunError, match=why) as error:
        Progress.read(tmp_path)
    (tmp_path / "ds.json").write_bytes(document)
    with pytest.raises(UserError, match=why) as error:
        read_user_config(str(tmp_path / "ds.json"))
    assert parse_json("[1]") == [1]


@pytest.mark.parametrize(
    "settings",
    [{"common": 1}, {"budgets": {"params<=1M": "many"}}, {"budgets": [1]}, {"config": None}, {"scratch": "both"}],
)
def test_an_odd_field_of_a_sweep_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.write_text("sweeps/s/sweep.json", json.dumps(settings))
    with pytest.raises(UserError, match=f"damaged .*{next(iter(settings))}.*delete it") as error:
        read_settings(store, "s")
    one_line(error)


def published(store: Store, folder: Path, **changes: Any) -> None:
    method = create_method("sws:stages=1-1")
    learngene = method.extract(method.auxiliary(SPEC)).describe(labels=tuple(DIGITS), preprocessing={})
    learngene.save(folder)
    description = {**json.loads((folder / "learngene.json").read_text()), **changes}
    (folder / "learngene.json").write_text(json.dumps(description))
    store.publish("learngene", "g", folder, {"cost": COST})


@pytest.mark.parametrize(
    "changes",
    [
        {"method": 3},
        {"options": "stages"},
        {"options": {"stages": [2, "two"]}},
        {"options": {"stages": 1.5}},
        {"spec": {**SPEC.model_dump(), "width": 10**400}},
        {"spec": {**SPEC.model_dump(), "depth": "two"}},
        {"spec": None},
        {"labels": 10},
        {"preprocessing": {"image_size": 8, "mean": "grey"}},
    ],
)
def test_an_odd_learngene_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    published(store, tmp_path / "files", **changes)
    with pytest.raises(UserError, match=f"'g' .*this version can read .*{next(iter(changes))}") as error:
        StoredLearngene.load(store, "g")
    one_line(error)


def test_an_odd_cost_of_a_learngene_is_unknown(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    published(store, tmp_path / "files")
    manifest = store.manifest("learngene", "g")
    metadata = {"cost": {**COST, "flops": "many", "images": 10**400}, "start": [1]}
    odd = StoredLearngene(
        StoredLearngene.load(store, "g").learngene, manifest.model_copy(update={"metadata": metadata})
    )
    facts = odd.facts()
    assert (facts["learngene_flops"], facts["learngene_images"], facts["learngene_seconds"]) == (None, None, 5.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    size: dict[str, Any] = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 3}
    made = timm.create_model("deit_tiny_patch16_224", num_classes=10, class_token=False, global_pool="avg", **size)
    config = {"label_names": DIGITS}
    save_for_hf(made, str(folder), model_config=config, safe_serialization=True, data_config={"input_size": (3, 8, 8)})
    return folder


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("architecture",), "\x1b[31mred\n[bold]$\\frac{x$"),
        (("architecture",), 3),
        (("label_names",), 1.5),
        (("label_names",), "names"),
        (("model_args", "num_heads"), -3),
        (("model_args", "patch_size"), True),
        (("pretrained_cfg", "mean"), -1),
        (("pretrained_cfg", "std"), [0.0]),
        (("pretrained_cfg", "crop_pct"), 1.5),
        (("pretrained_cfg",), []),
    ],
)
def test_an_odd_config_of_a_pulled_folder_is_one_line(
    path: tuple[str, ...], value: Any, model: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(model / "model.safetensors")
    settings = EvaluateConfig(model=str(tmp_path), data="digits", val_share=0.03)
    if path == ("label_names",):  # a model without names is taken as it is
        assert evaluate_model(settings)
        return
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        evaluate_model(settings)
    one_line(error)


def test_a_recipe_longer_than_people_write_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ValueError, match="longer than"):
        parse_yaml("a: [" + "x," * 1_000_000 + "x]")


@pytest.mark.parametrize("odd", [{"scratch": "cost"}, {"depths": 5}, {"epochs": "many", "scratch": "cost"}])
def test_an_odd_column_of_a_row_ends_no_command(odd: dict[str, Any], tmp_path: Path) -> None:
    store, folder = Store(str(tmp_path / "store")), make_folder(tmp_path / "folder", {"config.json": b"{}"})
    for name, more in {"a": odd, "b": {"epochs": 3, "scratch": "cost"}}.items():
        store.publish("descendant", f"s/{name}", folder, {"row": {**row(90.0)["row"], "descendant": name, **more}})
    store.write_text("sweeps/s/sweep.json", "{}")
    for command in ("list", "show sweeps/s", "show descendants/s/a", f"page --out {tmp_path / 'x.html'}"):
        assert learngene(f"{command} --store {store.uri}") == 0
