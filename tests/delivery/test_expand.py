"""Any size from a learngene alone: the same weights as the method's own, whole folders, honest about accuracy."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import ray_learngene as lg
from ray_learngene.delivery import expand as module
from ray_learngene.delivery import latency_limit
from ray_learngene.delivery.expand import Expander
from ray_learngene.delivery.latency import Latency
from ray_learngene.io.folders import new_folder
from ray_learngene.models.budgets import Budget, candidates, parse_quantity
from ray_learngene.models.costs import costs, parameters
from ray_learngene.models.specs import Spec, spec_for
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.store import Store
from tests.command_line import learngene
from tests.delivery.stores import DIGITS, SPEC, publish_descendant, publish_learngene


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return publish_learngene(tmp_path)


def test_an_expanded_folder_is_plain_timm_with_the_methods_weights(store: Store, tmp_path: Path) -> None:
    made = lg.expand("gene", depth=4, store=store, out=tmp_path / "four")
    expander = Expander.open(store, "gene")
    expected = expander.expand(SPEC.replace(depth=4)).state_dict()
    model = timm.create_model(f"local-dir:{made.path}", pretrained=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg["label_names"] == list(DIGITS) and model.pretrained_cfg["mean"] == [0.4] * 3
    assert len({file.stat().st_mode for file in made.path.iterdir()}) == 1  # a team may read its weights too
    facts = json.loads((made.path / "metrics.json").read_text())
    assert facts["params"] == parameters(SPEC.replace(depth=4)) and facts["top1_untuned"] is None
    card = (made.path / "README.md").read_text()
    assert "model-index" not in card and "accuracy\n" not in card  # nothing was measured
    assert "not trained after that (accuracy unknown" in card and "```\n\n`metrics.json`" in card


def test_a_model_of_two_stages_is_expanded_to_its_own_depths(tmp_path: Path) -> None:
    """`2-2` is also how a range of total depths is written."""
    small = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2}
    spec = spec_for("swin_tiny_patch4_window7_224", classes=10, **small)
    made = lg.expand("gene", store=publish_learngene(tmp_path, spec=spec), out=tmp_path / "own")
    assert json.loads((made.path / "metrics.json").read_text())["spec"]["depths"] == [2, 2]


@pytest.mark.parametrize("limits", [{"max_params": "150k"}, {"max_macs": "2M", "max_memory": "900kB"}])
def test_the_largest_size_within_the_limits_is_expanded(limits: dict[str, str], store: Store, tmp_path: Path) -> None:
    made = lg.expand("gene", store=store, out=tmp_path / "best", **limits)
    depth = json.loads((made.path / "metrics.json").read_text())["spec"]["depth"]
    budget = Budget.parse(",".join(f"{name.removeprefix('max_')}<={text}" for name, text in limits.items()))
    within = [one for one in range(1, 7) if budget.admits(costs(SPEC.replace(depth=one)))]
    assert depth == max(within) and 1 < depth < 6


def test_many_sizes_read_the_learngene_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = StoredLearngene.load
    monkeypatch.setattr(StoredLearngene, "load", lambda *args: read.append(args[1]) or load(*args))
    made = lg.expand_all("gene", store=store, depths="3-5", widths=[32, 48], out=tmp_path / "sizes")
    assert read == ["gene"]
    assert sorted(one.path.name for one in made) == [f"w{w}-d0{d}" for w in (32, 48) for d in (3, 4, 5)]
    assert all(one.load()[0](torch.zeros(1, 3, 8, 8)).shape == (1, 10) for one in made)


def test_images_measure_what_was_expanded(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNGENE_STORE", store.uri)
    assert learngene("expand gene --depth 3 --data digits --val-share 0.2 --out three") == 0
    facts = json.loads((tmp_path / "three" / "metrics.json").read_text())
    scores = lg.evaluate("three", data="digits", val_share=0.2)
    assert facts["top1_untuned"] == scores.top1
    assert f"top-1 {scores.top1:.2f} % untuned, measured on" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "known"), [("any-size:shallowest=1", True), ("sws", False)])
def test_a_distillation_has_measured_the_size_that_it_trained_as_it_is(
    method: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sws` spreads a descendant's layers over stages by another rule than its auxiliary model's."""
    store = Store(str(tmp_path / "distilled"))
    monkeypatch.setenv("LEARNGENE_STORE", store.uri)
    monkeypatch.chdir(tmp_path)
    images = "--data digits --val-share 0.2"
    distil = (
        f"distill {images} --train-share 0.3 --preset nano --depth 3 --alpha 0 --epochs 1 --batch-size 64 --workers 0"
    )
    assert learngene(f"{distil} --method {method} --name own") == 0
    accuracy = Expander.open(store, "own").accuracy(StoredLearngene.load(store, "own").learngene.spec)
    assert (accuracy is not None) == known
    assert learngene(f"expand own --depth 3 {images} --out three") == 0
    measured = json.loads((tmp_path / "three" / "metrics.json").read_text())["top1_untuned"]
    assert accuracy is None or (accuracy.top1, accuracy.error) == (measured, 0.0)


def test_accuracy_is_measured_or_interpolated_or_unknown(store: Store, tmp_path: Path) -> None:
    manifest = store.manifest("learngene", "gene")
    for depth, top1 in ((2, 40.0), (4, 60.0), (5, 62.0)):
        publish_descendant(store, manifest, SPEC.replace(depth=depth), "any-size", tmp_path, top1_untuned=top1)
    publish_descendant(store, manifest, SPEC.replace(depth=3), "scratch", tmp_path, top1_untuned=9.0, learngene=None)
    known = Expander.open(store, "gene").accuracy
    measured, between, outside = (known(SPEC.replace(depth=depth)) for depth in (4, 3, 6))
    assert (measured.top1, measured.error, measured.source) == (60.0, 0.0, "measured")
    # depth 4 itself would be interpolated from 2 and 5 as 54.67, half of the difference is 10
    assert (between.top1, between.error, between.source) == (50.0, 10.0, "interpolated from depths 2 and 4")
    assert outside is None


def test_a_new_version_of_the_learngene_knows_nothing_of_the_old_ones_descendants(store: Store, tmp_path: Path) -> None:
    manifest = store.manifest("learngene", "gene")
    publish_descendant(store, manifest, SPEC, "any-size", tmp_path, learngene_version="another")
    assert Expander.open(store, "gene").accuracy(SPEC) is None


def test_pull_offers_both_and_takes_the_trained_one(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNGENE_STORE", store.uri)
    manifest = store.manifest("learngene", "gene")
    publish_descendant(store, manifest, SPEC.replace(depth=2), "any-size", tmp_path, top1_untuned=40.0)
    assert learngene("pull --learngene gene --max-params 150k --out a") == 0
    said = capsys.readouterr().out
    assert "trained    sizes/any-size-w48-d02: 58.5 k parameters" in said and "top-1 90.00 %" in said
    assert "expanded   width 48, depth 5: 143 k parameters" in said and "accuracy unknown" in said
    assert len(lg.Model(tmp_path / "a").load()[0].blocks) == 2
    assert learngene("pull --learngene gene --max-params 150k --expand --out b") == 0
    assert len(lg.Model("b").load()[0].blocks) == 5
    assert learngene("pull --learngene gene --max-params 40k --out c") == 0  # nothing trained is within
    assert len(lg.Model(tmp_path / "c").load()[0].blocks) == 1


def test_a_method_that_fits_says_that_it_did_not(tmp_path: Path) -> None:
    store = publish_learngene(tmp_path, "wave:fit=7", "waves")
    expander = Expander.open(store, "waves", "wave:fit=7")
    assert any("fits the model to its size for 7 steps" in note for note in expander.notes(SPEC))
    assert Expander.open(store, "waves", "wave:fit=0").notes(SPEC) == []


def test_sizes_outside_the_training_are_said_and_chosen_last(store: Store, tmp_path: Path) -> None:
    expander = Expander.open(store, "gene")
    assert expander.largest({"params": "400k"}, expander.sizes("1-12")) == SPEC  # depth 6, although 12 fits
    assert expander.notes(SPEC.replace(depth=12)) == [
        "depth 12 is outside of 3 to 6, the depths that any-size was trained at"
    ]
    assert expander.largest({"params": "100k"}, expander.sizes("1-2")).depth == 2  # there is nothing else


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("expand gene --max-params 3", "nothing meets it; the nearest spec is depth 1"),
        ("expand gene --depth 3 --depths 4-5", "give depth or depths, not both"),
        ("expand gene --width 50", "50 is not a multiple of the head size, 16"),
        ("expand gene --depths 2-3 --widths 32,64", "cannot grow the width: the learngene has width 48"),
        ("expand gene --method sws", "cannot expand a learngene of method 'any-size'"),
        ("expand gene --depth x", "--depth x: cannot read 'x'"),
        ("expand missing", "no learngene 'missing'"),
        ("expand gene --out made", "made has no config.json, so it is not replaced"),
        ("expand gene --depths 3-3-9-3", "3-3-9-3 names 4 stages, the plain vision transformer has 1"),
        ("expand gene --depth 3 --data nowhere", "no image set 'nowhere'"),
        ("pull --expand", "--expand needs --learngene"),
        ("pull --learngene gene --max-latency 8ms --device pi", "was measured on 'pi': import a record of it"),
        ("pull --max-params 3M --device pi", "device is where max_latency holds: give max_latency too"),
        ("pull learngenes/gene --expand", "takes no limits and no --expand"),
        ("pull learngenes/gene --format onnx", "is no model to export: `learngene expand gene` makes one"),
        ("pull --learngene gene --expand --format onnx", "expand makes a timm folder: leave format out"),
        ("pull --format torch", "a torch export holds a pickle, and a store keeps none"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    command: str,
    message: str,
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARNGENE_STORE", store.uri)
    before = sorted(tmp_path.rglob("*"))
    assert learngene(command, "--overwrite") in (2, 3)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_write_that_fails_leaves_the_folder_as_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expander = Expander.open(store, "gene")
    expander.write(SPEC, tmp_path / "x")
    before = (tmp_path / "x" / "model.safetensors").read_bytes()
    monkeypatch.setattr(module, "write_facts", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(lg.UserError):
        expander.write(SPEC.replace(depth=2), tmp_path / "x", overwrite=True)
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_part_of_a_folder(signal_number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)), new_folder(tmp_path / "x", False, "config.json") as folder:
            (folder / "config.json").write_text("{}")
            signal.raise_signal(signal_number)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


def test_few_sizes_are_timed_to_find_the_largest_that_is_fast_enough(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timed: list[tuple[int, int]] = []

    def measured(spec: Spec) -> Latency:
        timed.append((spec.width, spec.depth))
        return Latency(spec.depth * spec.width / 48, 1.0, batch=1, dtype="float32", threads=1, device="x", runs=1)

    monkeypatch.setattr(latency_limit, "measure_latency", measured)
    specs = [SPEC.replace(depth=depth, width=width) for depth in range(1, 65) for width in (48, 96)]
    with caplog.at_level(logging.INFO, logger="ray_learngene"):
        limit = parse_quantity("latency", "37.5ms")
        found = latency_limit.largest_within_latency(limit, candidates(specs, costs), None)
    assert (found.spec.width, found.spec.depth) == (96, 18)  # larger than depth 37 of width 48
    assert len(timed) == len({*timed}) <= 2 * 8
    assert "latency 36 ms on this machine (cpu" in caplog.text and "give --device for another one" in caplog.text
    with pytest.raises(lg.UserError, match=r"nothing meets it; the fastest size takes 1 ms on this machine \(cpu"):
        latency_limit.largest_within_latency(parse_quantity("latency", "0.5ms"), candidates(specs, costs), None)


def test_a_size_is_timed_here(store: Store, tmp_path: Path) -> None:
    assert lg.expand("gene", store=store, max_latency="1000s", out=tmp_path / "slow").path.is_dir()


@pytest.mark.parametrize("top1", ["much", None, float("nan")])
def test_an_accuracy_that_is_no_number_is_unknown(top1: Any, store: Store, tmp_path: Path) -> None:
    facts = {**store.manifest("learngene", "gene").metadata, "config": {"labels": True}, "metrics": {"top1": top1}}
    store.publish("learngene", "gene", tmp_path / "made" / "gene", facts, overwrite=True)
    assert Expander.open(store, "gene").accuracy(SPEC) is None
