"""Configurations: recipes and flags, and what they refuse; every recipe and every command of the README is valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from ray_learngene import config
from ray_learngene.cli import main
from ray_learngene.cli.commands import COMMANDS
from ray_learngene.cli.flags import NAMES, parser_of
from ray_learngene.config import (
    DistillConfig,
    PlanConfig,
    PullConfig,
    SiblingsConfig,
    SweepConfig,
    WorkersConfig,
    load_config,
)
from ray_learngene.errors import UserError
from ray_learngene.models.specs import PRESETS

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
NEEDED = {"data": "digits", "name": "x", "learngene": "x", "ancestry": "levit_384"}


def recipe_class(path: Path) -> type[config.Config]:
    kind = path.stem.rsplit("-", 1)[-1]
    classes = {
        "ancestry": config.AncestryConfig,
        "sweep": config.SweepConfig,
        "bench": config.BenchConfig,
    }
    return classes.get(kind, config.DistillConfig)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration(path: Path) -> None:
    cls = recipe_class(path)
    given = yaml.safe_load(path.read_text())
    missing = {key: value for key, value in NEEDED.items() if key in cls.model_fields and key not in given}
    loaded = load_config(cls, missing, path)
    assert loaded.model_dump().keys() >= given.keys()


@pytest.mark.parametrize(("preset", "epochs", "lr_of_the_sweep"), [("s", 150, 5e-5), ("b", 100, 1e-5)])
def test_the_papers_recipes_are_the_papers(preset: str, epochs: int, lr_of_the_sweep: float) -> None:
    loaded = load_config(DistillConfig, {"data": "x", "name": "x"}, ROOT / f"jobs/recipes/sws-{preset}.yaml")
    assert (loaded.preset, loaded.method, loaded.ancestry) == (preset, "sws:stages=3-3-4-3-3", "levit_384.fb_dist_in1k")
    assert (loaded.epochs, loaded.batch_size, loaded.lr, loaded.min_lr) == (epochs, 512, 5e-4, 1e-5)
    assert (loaded.alpha, loaded.tau, loaded.distillation, loaded.weight_decay) == (1.0, 1.0, "soft", 0.05)
    assert (loaded.ema, loaded.warmup_epochs, loaded.warmup_lr, loaded.clip_grad) == (0.99996, 5, 1e-6, 0.0)
    given = {"data": "x", "name": "x", "learngene": preset}
    sweep = load_config(SweepConfig, given, ROOT / f"jobs/recipes/sws-{preset}-sweep.yaml")
    assert (sweep.depths, sweep.arms, sweep.epochs, sweep.warmup_epochs) == ("6-15", ("sws",), 10, 0)
    assert (sweep.batch_size, sweep.lr, sweep.weight_decay, sweep.ancestry) == (512, lr_of_the_sweep, 0.05, None)
    for each in (loaded, sweep):  # DeiT's augmentation
        assert (each.mixup, each.cutmix, each.reprob, each.auto_augment) == (0.8, 1.0, 0.25, "rand-m9-mstd0.5-inc1")
        assert (each.repeats, each.smoothing, each.color_jitter, each.drop_path) == (3, 0.1, 0.4, 0.1)


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.endswith("sweep")], ids=lambda path: path.stem)
def test_the_recipe_of_a_sweep_is_one_of_its_plan(path: Path) -> None:
    flags = {"data": "x", "learngene": "x", "name": "x"}
    planned, sweep = load_config(PlanConfig, flags, path), load_config(SweepConfig, flags, path)
    common = yaml.safe_load(path.read_text()).keys() & PlanConfig.model_fields.keys()
    assert common >= {"epochs", "arms", "batch_size"}
    assert {name: getattr(planned, name) for name in common} == {name: getattr(sweep, name) for name in common}
    with pytest.raises(UserError, match="epoch: no such setting; did you mean epochs"):
        load_config(PlanConfig, {**flags, "epoch": 3}, path)


def test_the_default_warm_up_fits_a_short_run() -> None:
    needed = {"data": "digits", "name": "x"}
    fitting = {1: 0.5, 5: 2.5, 6: 5, 150: 5, 0: 5}
    for epochs, warm_up in fitting.items():
        assert load_config(config.AncestryConfig, {**needed, "epochs": epochs}).warmup_epochs == warm_up
    with pytest.raises(UserError, match="leaves nothing of 1 epoch"):
        load_config(config.AncestryConfig, {**needed, "epochs": 1, "warmup_epochs": 5})
    again = config.AncestryConfig(**load_config(config.AncestryConfig, {**needed, "epochs": 1}).model_dump())
    assert again.warmup_epochs == 0.5


@pytest.mark.parametrize("command", ["distill", "bench", "softlabels"])
def test_help_shows_the_presets(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main._parse([command, "--help"])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["preset", "width", "heads", "depth", "patch", "image", "size"] in shown
    for name, size in PRESETS.items():
        assert [name, *map(str, (size.width, size.heads, size.depth, size.patch, size.image))] in shown


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_names_values_in_words_of_the_command_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main._parse([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert "usage: learngene" in shown
    assert not re.search(r"typing|Annotated|FieldInfo|Ellipsis|NoneType|<class", shown)


def test_the_docs_show_the_presets() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text()
    for name, size in PRESETS.items():
        assert f"| `{name}` | {size.width} | {size.heads} | {size.image} px, {size.patch} | {size.depth} |" in text


def test_flags_override_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: digits\nname: x\nlearngene: y\nepochs: 7\nweight-decay: 0.1\n")
    loaded = load_config(SweepConfig, {"epochs": "3"}, recipe)
    assert (loaded.epochs, loaded.weight_decay, loaded.warmup_epochs) == (3, 0.1, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3\n", "epoch: no such setting; did you mean epochs"),
        ("- a\n", "expected 'key: value' lines"),
        ("epochs: 3\na: [\n", "not YAML in line 3: expected the node content, but found '<stream end>'$"),
        ("\x00", "not YAML: .*special characters are not allowed"),
        ("epochs: 3\nepochs: 4\n", "not YAML: line 2: 'epochs' is there twice$"),
        ("lr: .inf\n", "lr: input should be a finite number"),
        ("epochs: many\n", "epochs: expected a whole number"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, text: str, says: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        load_config(SweepConfig, {"data": "digits", "name": "x", "learngene": "y"}, recipe)
    assert str(recipe) in str(error.value) and "\n" not in str(error.value)


def test_recipes_merge_in_order(tmp_path: Path) -> None:
    for name, text in {"a": "epochs: 7\nseed: 1\n", "b": "seed: 2\nworkers: 1:2\n"}.items():
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in "ab"]
    flags = ["--data", "digits", "--name", "x", "--ancestry", "y", "--preset", "nano", "--seed", "3"]
    for words, expected in ((flags, (7, 3, "1:2")), (flags[:-2], (7, 2, "1:2"))):
        parsed = main._parse(["distill", "--config", paths[0], *words, "--config", paths[1]])
        assert parsed is not None and (parsed[1].epochs, parsed[1].seed, parsed[1].workers) == expected
    (tmp_path / "a").write_text("epochs: many\n")
    with pytest.raises(UserError, match=f"^recipe {paths[0]}: epochs: "):
        load_config(SweepConfig, {"data": "digits", "name": "x", "learngene": "y"}, paths)


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    default = load_config(config.ListConfig, {})
    monkeypatch.setenv("LEARNGENE_STORE", "")
    monkeypatch.setenv("LEARNGENE_STORE_PATIENCE", "")
    assert load_config(config.ListConfig, {}) == default
    monkeypatch.setenv("LEARNGENE_STORE", str(tmp_path))
    assert load_config(config.ListConfig, {}).store == str(tmp_path)


@pytest.mark.parametrize("store", ["s3:/bucket/x", "s3:bucket/x", "S3:/bucket/x"])
def test_an_address_without_its_slashes_is_no_local_folder(store: str) -> None:
    with pytest.raises(UserError, match="^--store: write s3://bucket/x, or ./"):
        load_config(config.ListConfig, {"store": store})
    with pytest.raises(UserError, match="^--out: write s3://"):
        load_config(config.ConvertConfig, {"data": "digits", "out": store})
    with pytest.raises(UserError, match="^--data: write s3://"):
        load_config(config.CheckConfig, {"data": store})
    for fine in ("s3://bucket/x", "./s3:x", "a:b", "/s3:/x"):
        load_config(config.ListConfig, {"store": fine})


@pytest.mark.parametrize("out", ["s3://bucket/x", "s3:/bucket/x", "gs://bucket", "file:///x", "https://x/y"])
@pytest.mark.parametrize("cls", [config.PullConfig, config.PageConfig, config.MeasureConfig])
def test_an_address_is_no_path_on_this_machine(cls: type[config.Config], out: str) -> None:
    with pytest.raises(UserError, match="^--out: a path on this machine is needed: copy it to a bucket afterwards"):
        load_config(cls, {"out": out, "models": ("x",)} if cls is config.MeasureConfig else {"out": out})
    if cls is config.PullConfig:
        assert cls(out=f"./{out}").out == f"./{out}"


def test_a_model_folder_is_named_with_or_without_its_scheme() -> None:
    assert load_config(config.ExportConfig, {"model": "local-dir:a"}).model == "a"
    assert load_config(config.MeasureConfig, {"models": ("b", "local-dir:a")}).models == ("b", "a")
    with pytest.raises(UserError, match="a folder on this machine is needed: learngene pull ancestries/a"):
        load_config(config.EvaluateConfig, {"data": "digits", "model": "store:ancestries/a"})


@pytest.mark.parametrize("name", ["num_classes", "in_chans", "pretrained"])
def test_arguments_of_models_that_other_settings_decide(name: str) -> None:
    for cls, setting in ((config.AncestryConfig, "model_args"), (config.DistillConfig, "student_args")):
        needed = {"data": "digits", "name": "x", **({"ancestry": "y"} if cls is config.DistillConfig else {})}
        with pytest.raises(UserError, match=f"^--{setting.replace('_', '-')}: {name} .*: leave it out"):
            load_config(cls, {**needed, setting: {name: 3}})


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_flag_is_a_setting_with_help(command: str) -> None:
    cls = getattr(config, COMMANDS[command][0])
    text = parser_of(command, cls).format_help()
    assert "Pydantic" not in text
    for name, field in cls.model_fields.items():
        assert field.description, name
        hidden = name in getattr(cls, "refused", ())
        flag = f"--{NAMES.get(name, name).replace('_', '-')}"
        assert hidden or flag in text or name in text


PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_of(page: Path) -> list[str]:
    """Commands in a page's blocks, those of `python -m jobs.COMMAND` too; `...` stands for more flags."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [
        re.match(r"\s*(?:\$ )?(?:learngene|ray job submit .* -- +python -m jobs\.(?=\w)) *(.*)", line) for line in lines
    ]
    return [match[1] for match in found if match and "..." not in match[1].split()]


def test_the_readme_has_commands() -> None:
    readme = commands_of(PAGES[0])
    assert {line.split()[0] for line in readme} >= {"ancestry", "distill", "sweep", "pull"}
    assert sum("s3://" in line for line in readme) >= 3


@pytest.mark.parametrize(
    ("page", "line"), [pytest.param(page, line, id=page.stem) for page in PAGES for line in commands_of(page)]
)
def test_every_command_of_the_pages_is_valid(page: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    main._parse(shlex.split(line, comments=True))


@pytest.mark.parametrize(("siblings", "most"), [("auto", None), ("1", 1), (8, 8)])
def test_numbers_of_siblings(siblings: str | int, most: int | None) -> None:
    assert SiblingsConfig(siblings=siblings).most_siblings == most


@pytest.mark.parametrize("siblings", ["all", "0", -1, True, 1.5])
def test_what_is_no_number_of_siblings(siblings: object) -> None:
    with pytest.raises(UserError, match="^--siblings: give a number from 1 up, or auto"):
        load_config(SiblingsConfig, {"siblings": siblings})


def test_a_training_reserves_no_gpu_that_it_does_not_use() -> None:
    needed = {"data": "digits", "name": "x", "learngene": "y"}
    assert load_config(SweepConfig, {**needed, "gpus_per_trial": 0.5}).gpus_per_trial == 0.5
    with pytest.raises(UserError, match="^gpus_per_trial 2: a training uses one GPU; give 1 or a share of one$"):
        load_config(SweepConfig, {**needed, "gpus_per_trial": "2"})


def test_descendants_that_asha_may_stop_are_alone() -> None:
    needed = {"data": "digits", "name": "x", "learngene": "y", "lr_search": 2}
    assert load_config(SweepConfig, {**needed, "siblings": 4}).siblings == 4
    with pytest.raises(UserError, match="leave siblings out, or asha"):
        load_config(SweepConfig, {**needed, "siblings": 4, "asha": True})


@pytest.mark.parametrize(("workers", "least", "most"), [("0", 0, 0), (3, 3, 3), ("2:8", 2, 8), ("4:4", 4, 4)])
def test_numbers_of_workers(workers: str | int, least: int, most: int) -> None:
    config = WorkersConfig(workers=workers)
    assert (config.least_workers, config.most_workers) == (least, most)


@pytest.mark.parametrize("workers", ["two", "2:", ":8", "8:2", "0:2", "-1", "2:3:4", True, 1.5])
def test_what_is_no_number_of_workers(workers: object) -> None:
    with pytest.raises(UserError, match="^--workers: .* as in 2:8, got "):
        load_config(WorkersConfig, {"workers": workers})


def test_numbers_and_texts_are_both_quantities_and_sizes() -> None:
    assert PullConfig(max_params=150000).max_params == "150000"
    assert PullConfig(max_params=3.2e6, max_latency="8ms").max_params == "3200000"
    given = SweepConfig(data="x", name="x", learngene="x", budgets="params<=300k", depths=4, widths=[16, 32])
    assert (given.budgets, given.depths, given.widths) == (("params<=300k",), "4", "16,32")
    assert SweepConfig(data="x", name="x", learngene="x", depths=range(3, 6)).depths == "3,4,5"
    with pytest.raises(ValidationError):
        PullConfig(max_params=True)
