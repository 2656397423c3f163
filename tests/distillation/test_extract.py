"""Learngenes from trained models, what they cost, and distillation that starts from one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from ray_learngene import sigterm
from ray_learngene.ancestry.model import load_ancestry
from ray_learngene.config import AncestryConfig, DistillConfig, ExtractConfig, SweepConfig, load_config
from ray_learngene.distillation.distill import distill
from ray_learngene.distillation.extract import extract
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.errors import Interrupted, UserError
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.store.learngenes import StoredLearngene
from ray_learngene.store.lineage import ancestry_costs, sources_of
from ray_learngene.store.store import Store
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.run import _begun
from ray_learngene.sweeps.sweep import sweep
from ray_learngene.sweeps.trial import Trial
from ray_learngene.sweeps.trials import Outcomes, SweepInputs
from tests.data.image_files import write_class_folders

QUICK: dict[str, Any] = {
    **{"data": "digits", "batch_size": 512, "hflip": 0.0, "warmup_epochs": 0, "drop_path": 0.0, "crop_pct": 1.0},
    **{"epochs": 1, "workers": 0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ancestry that is a plain vision transformer of three layers, and one distilled model of two."""
    uri = str(tmp_path_factory.mktemp("extract") / "store")
    size = {"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 3, "num_heads": 3}
    arguments = {**size, "class_token": False, "global_pool": "avg"}
    train_ancestry(AncestryConfig(**QUICK, name="vit", store=uri, model="deit_tiny_patch16_224", model_args=arguments))
    distill(distillation(uri, name="model", method="pretrained", depth=2))
    return uri


def distillation(store: str, **changes: Any) -> DistillConfig:
    return DistillConfig(**{**QUICK, "store": store, "ancestry": "store:ancestries/vit", "preset": "nano", **changes})


def extraction(store: str, **changes: Any) -> ExtractConfig:
    return ExtractConfig(**{"store": store, "source": "store:ancestries/vit", **changes})


@pytest.mark.parametrize("method", ["heur-lg", "auto-lg", "weight-selection", "pretrained", "ligo", "wave"])
def test_a_trained_model_gives_a_learngene_without_distillation(store: str, method: str, tmp_path: Path) -> None:
    manifest = extract(extraction(store, name=f"x-{method}", method=method))
    cost = manifest.metadata["cost"]
    assert cost["flops"] == cost["images"] == 0 and cost["seconds"] >= 0
    stored = StoredLearngene.load(Store(store), f"x-{method}")
    assert stored.learngene.method == method and stored.learngene.spec.depth == 3
    assert stored.learngene.labels == tuple(str(digit) for digit in range(10))
    assert stored.learngene.preprocessing["image_size"] == 8
    assert extract(extraction(store, name=f"x-{method}", method=method)) == manifest  # again: nothing to do


def test_a_learngene_of_a_distilled_model_has_cost_its_distillation(store: str) -> None:
    source = Store(store).manifest("learngene", "model").metadata
    manifest = extract(extraction(store, name="selected", method="weight-selection", source="store:learngenes/model"))
    assert manifest.metadata["cost"]["flops"] == source["cost"]["flops"] > 0
    assert manifest.metadata["cost"]["images"] == source["cost"]["images"]
    assert manifest.metadata["metrics"] == source["metrics"]


def test_what_cannot_be_extracted_is_said(store: str) -> None:
    with pytest.raises(UserError, match="'sws' needs its own auxiliary model"):
        extract(extraction(store, name="no", method="sws"))
    with pytest.raises(UserError, match="no ancestry 'gone'"):
        extract(extraction(store, name="no", method="wave", source="store:ancestries/gone"))
    extract(extraction(store, name="taken", method="heur-lg"))
    with pytest.raises(UserError, match="'taken' is already in .* made with other settings"):
        extract(extraction(store, name="taken", method="auto-lg"))
    distill(distillation(store, name="kept", method="heur-lg:keep=last1", depth=2))
    with pytest.raises(UserError, match="method 'heur-lg' is no whole model: the rest would be random or repeated"):
        extract(extraction(store, name="no", method="wave", source="store:learngenes/kept"))
    # its own layers were trained by another layout than the one it is expanded by
    distill(distillation(store, name="shared", method="sws:stages=1-2", depth=3))
    with pytest.raises(UserError, match="method 'sws' is no whole model"):
        extract(extraction(store, name="no", method="weight-selection", source="store:learngenes/shared"))
    assert not Store(store).exists("learngene", "no")


def test_learngenes_of_differently_normalised_images_are_swept_apart(store: str) -> None:
    source = StoredLearngene.load(Store(store), "model").learngene
    with tempfile.TemporaryDirectory() as folder:
        preprocessing = {**source.preprocessing, "mean": [0.1, 0.1, 0.1]}
        source.describe(labels=source.labels, preprocessing=preprocessing).save(Path(folder))
        metadata = Store(store).manifest("learngene", "model").metadata
        Store(store).publish("learngene", "darker", Path(folder), metadata)
    config = SweepConfig(
        **{key: value for key, value in QUICK.items() if key != "workers"},
        **{"name": "dark", "store": store, "learngene": "model", "depths": "2", "in_process": True},
        arms=("pretrained", "pretrained@darker"),
    )
    with pytest.raises(UserError, match="'darker' was distilled with mean .*: sweep them apart"):
        sweep(config)


def test_distillation_starts_from_a_learngene(store: str) -> None:
    """The closed form of WAVE is the warm start of its distillation."""
    extract(extraction(store, name="warm", method="wave"))
    begun = distill(distillation(store, name="warmed", method="wave", depth=3, start="warm", epochs=0))
    assert begun.name == "warmed"
    before, after = (StoredLearngene.load(Store(store), name) for name in ("warm", "warmed"))
    assert all(torch.equal(x, after.learngene.tensors[name]) for name, x in before.learngene.tensors.items())
    trained = distill(distillation(store, name="further", method="pretrained", depth=2, start="model"))
    first, further = (StoredLearngene.load(Store(store), name).facts() for name in ("model", "further"))
    assert further["learngene_flops"] == first["learngene_flops"] + trained.metadata["cost"]["flops"]
    with pytest.raises(UserError, match="--start warm: a learngene of method 'wave' .* does not fit --method tleg"):
        distill(distillation(store, name="no", method="tleg", start="warm"))
    with pytest.raises(UserError, match="does not fit --method wave"):
        distill(distillation(store, name="no", method="wave", depth=5, start="warm"))


def test_untied_layers_start_from_shared_stages_and_learn_from_labels_alone(store: str) -> None:
    """The ancestry model answers nothing then, and costs nothing."""
    tied = distill(distillation(store, name="tied", method="any-size:shallowest=1:stages=2", depth=3))
    more = {"method": "any-size:shallowest=1:stages=2:growth=0:untied=true", "depth": 3, "start": "tied", "alpha": 0}
    made = distill(distillation(store, name="untied", **more))
    assert made.metadata["cost"]["teacher_flops"] == 0 < tied.metadata["cost"]["teacher_flops"]
    stored = StoredLearngene.load(Store(store), "untied")
    assert stored.facts()["learngene_flops"] == sum(one.metadata["cost"]["flops"] for one in (tied, made))
    blocks = [stored.learngene.tensors[f"blocks.{layer}.mlp.fc1.weight"] for layer in range(3)]
    assert not torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[1], blocks[2])


def test_labels_alone_need_no_ancestry_model(store: str) -> None:
    """The weights are those that it would get with one which is not asked, as both see the same images."""
    labelled = {"method": "any-size:shallowest=1", "depth": 3, "alpha": 0}
    names = ("asked-nothing", "alone", "alone-further")
    distill(distillation(store, name=names[0], **labelled))
    distill(distillation(store, name=names[1], **labelled, ancestry=None))
    distill(distillation(store, name=names[2], **labelled, ancestry=None, start=names[1], epochs=0))
    known, *alone = (StoredLearngene.load(Store(store), name) for name in names)
    for one in alone:
        assert all(torch.equal(x, one.learngene.tensors[name]) for name, x in known.learngene.tensors.items())
        assert one.learngene.description() == known.learngene.description()
        assert "ancestry" not in one.manifest.metadata and one.manifest.metadata["origin"]["base_models"] == []
    assert known.manifest.metadata["cost"]["teacher_flops"] == 0
    table = sweep(quick_sweep(store, name="without", learngene="alone", arms=("any-size",), depths="2"))
    assert set(table["status"]) == {"finished"}
    assert set(ancestry_costs(sources_of(alone[0].manifest), Store(store)).values()) == {0.0}


@pytest.mark.parametrize(
    ("changes", "needs"),
    [
        ({}, "alpha 1"),
        ({"alpha": 0, "soft_labels": True}, "soft_labels"),
        ({"alpha": 0, "warm_start": "first"}, "warm_start"),
        ({"teach": "features"}, "teach features"),
    ],
)
def test_what_asks_the_ancestry_model_needs_one(changes: dict[str, Any], needs: str) -> None:
    given = {"name": "n", "data": "digits", "preset": "nano", **changes}
    with pytest.raises(UserError, match=f"ancestry is required: the ancestry model, for {needs}; only alpha 0"):
        load_config(DistillConfig, given)


@pytest.mark.parametrize("method", ["layerdrop", "early-exit:shallowest=2"])
def test_a_sweep_of_a_whole_model_measures_shallower_ones(method: str, store: str) -> None:
    arm = method.partition(":")[0]
    distill(distillation(store, name=f"whole-{arm}", method=method, depth=3))
    settings = {key: value for key, value in QUICK.items() if key != "workers"} | {"in_process": True, "name": arm}
    table = sweep(SweepConfig(**settings, store=store, learngene=f"whole-{arm}", arms=(arm,), depths="2,3"))
    assert set(table["status"]) == {"finished"} and table["outside"].isna().all()


def test_arms_of_one_sweep_expand_their_own_learngenes_and_learn_from_a_teacher(store: str) -> None:
    for seed in range(2):
        distill(distillation(store, name=f"any-{seed}", method="any-size:shallowest=1", depth=3, seed=seed))
    extract(extraction(store, name="grown", method="ligo", source="store:learngenes/model"))
    config = SweepConfig(
        **{key: value for key, value in QUICK.items() if key != "workers"},
        name="arms",
        store=store,
        learngene="any-0",
        arms=("any-size@any-{seed}", "pretrained@model", "ligo:fit=2@grown", "scratch"),
        depths="2",
        seeds=2,
        ancestry="store:ancestries/vit",
        in_process=True,
        scratch="epochs",
    )
    table = sweep(config)
    by_arm = table.groupby("arm")["learngene"].agg(list)
    assert sorted(by_arm["any-size@any-{seed}"]) == ["any-0", "any-1"]
    assert pandas.isna(by_arm["scratch"]).all() and set(by_arm["pretrained@model"]) == {"model"}
    assert (table["teacher_flops"] > 0).all()
    fitted = table[table["arm"].str.startswith("ligo")]
    assert (fitted["fit_steps"] == 2).all() and (fitted["fit_flops"] > 0).all()
    assert (table[~table["arm"].str.startswith("ligo")]["fit_steps"] == 0).all()
    with pytest.raises(UserError, match="the learngene 'model' was made by 'pretrained', not by 'sws'"):
        sweep(config.model_copy(update={"name": "other", "arms": ("sws@model",)}))
    with pytest.raises(UserError, match="made with ancestry .*, not None|made with alpha"):
        sweep(config.model_copy(update={"ancestry": None}))


def quick_sweep(store: str, **changes: Any) -> SweepConfig:
    settings = {key: value for key, value in QUICK.items() if key != "workers"}
    settings |= {"store": store, "learngene": "model", "in_process": True, "epochs": 0, "scratch": "epochs"}
    return SweepConfig(**{**settings, **changes})


def test_arms_may_be_added_whether_or_not_the_first_expanded_the_learngene(store: str) -> None:
    first = quick_sweep(store, name="added", depths="2", arms=("scratch",))
    sweep(first)
    assert len(sweep(first.model_copy(update={"arms": ("scratch", "pretrained")}))) == 2
    assert len(sweep(first.model_copy(update={"arms": ("scratch",)}))) == 2
    distill(distillation(store, name="another", method="pretrained", depth=2, seed=1))
    with pytest.raises(UserError, match="was made with learngene .*: choose another --name"):
        sweep(first.model_copy(update={"arms": ("pretrained",), "learngene": "another"}))


def test_descendants_are_trained_with_the_interpolation_that_they_inherit(store: str) -> None:
    distill(distillation(store, name="bilinear", method="pretrained", depth=2, interpolation="bilinear"))
    settings = {"depths": "2", "arms": ("pretrained",), "epochs": 1, "learngene": "bilinear"}
    inherited = sweep(quick_sweep(store, name="inherited", **settings))
    said = sweep(quick_sweep(store, name="said", **settings, interpolation="bilinear"))
    other = sweep(quick_sweep(store, name="other", **settings, interpolation="bicubic"))
    assert inherited["val_loss"].tolist() == said["val_loss"].tolist() != other["val_loss"].tolist()
    assert inherited["descendant"].tolist() == said["descendant"].tolist() != other["descendant"].tolist()
    made = Store(store).manifest("descendant", f"inherited/{inherited['descendant'][0]}").metadata["config"]
    assert made["interpolation"] == "bilinear"


def test_a_teacher_is_given_images_as_it_normalises_them(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descendants inherit the learngene's statistics, and their teacher may have others."""
    model = load_ancestry("store:ancestries/vit", Store(store)).model
    preprocessing = Preprocessing(image_size=8, mean=(0.1,) * 3, std=(0.2,) * 3, crop_pct=1.0, interpolation="bicubic")
    with tempfile.TemporaryDirectory() as folder:
        labels = tuple(str(digit) for digit in range(10))
        export_timm(model, Path(folder), labels=labels, preprocessing=preprocessing)
        Store(store).publish("ancestry", "dark", Path(folder), {})
    seen: list[SweepInputs] = []
    monkeypatch.setattr("ray_learngene.sweeps.sweep.run_trials", lambda inputs, *others: seen.append(inputs))
    monkeypatch.setattr("ray_learngene.sweeps.sweep.write_results", lambda *others: pandas.DataFrame())
    sweep(quick_sweep(store, name="taught", depths="2", ancestry="store:ancestries/dark"))
    (inputs,) = seen
    assert inputs.ancestry is not None
    own, pixels = inputs.images.preprocessing, torch.rand(5, 3, 8, 8)
    assert own.mean[0] != 0.1
    given = (pixels - torch.tensor(own.mean).reshape(3, 1, 1)) / torch.tensor(own.std).reshape(3, 1, 1)
    torch.testing.assert_close(inputs.ancestry(given), model((pixels - 0.1) / 0.2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("end", [Interrupted(1, 2, "descendant"), SystemExit(143), RuntimeError("Tune's")])
def test_what_was_stopped_early_is_kept_however_a_sweep_ends(
    store: str, end: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(inputs: SweepInputs, wanted: Any, before: Any, on_start: Any, keep: Any, *more: Any) -> None:
        Outcomes(inputs, wanted, keep).stopped(wanted[0], {"epoch": 1, "top1": 12.5})
        raise end

    config = quick_sweep(store, name=f"cut-{type(end).__name__}", depths="1,2", arms=("scratch",))
    with monkeypatch.context() as patched, pytest.raises(type(end)):
        patched.setattr("ray_learngene.sweeps.sweep.run_trials", interrupted)
        sweep(config)
    assert sweep(config)["status"].tolist() == ["finished", "stopped"]


def test_a_search_goes_on_with_the_learning_rates_that_it_had_begun(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SweepInputs] = []
    monkeypatch.setattr("ray_learngene.sweeps.sweep.run_trials", lambda inputs, *others: seen.append(inputs))
    monkeypatch.setattr("ray_learngene.sweeps.sweep.write_results", lambda *others: pandas.DataFrame())
    config = quick_sweep(store, name="searched", depths="1,2", arms=("scratch",), epochs=2, checkpoint_seconds=0)
    sweep(config)
    one, other = (Trial(Arm.parse("scratch", ""), spec, 0, 1.234567890123e-4) for spec in seen[0].costs)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(sigterm, "requested", lambda step: step == 3)
        seen[0].train([one], lambda *others: None, lambda *others: None)
    left = seen[0].store.manifests("checkpoint", "searched")
    assert _begun(seen[0], [other, one], (), left) == [one]
    assert _begun(seen[0], [one], [seen[0].descendant(one).name], left) == []


def test_a_sweep_that_goes_on_is_validated_on_the_same_images(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_class_folders(tmp_path, {"train": 0, "val": 0})
    for split in ("train", "val"):
        write_class_folders(photos / split, {str(digit): 2 for digit in range(10)})
    config = quick_sweep(store, name="photos", depths="2", arms=("scratch",), data=str(photos), batch_size=4)
    sweep(config)
    (photos / "val" / "3" / "1.jpg").unlink()
    with pytest.raises(UserError, match="'photos' in .* was made with validation '[0-9a-f]{64}', not '[0-9a-f]{64}'"):
        sweep(config.model_copy(update={"depths": "1,2"}))
    path = "sweeps/photos/sweep.json"
    settings = json.loads(Store(store).read_text(path) or "")
    del settings["common"]["validation"]
    Store(store).write_text(path, json.dumps(settings))
    assert len(sweep(config.model_copy(update={"depths": "1,2"}))) == 2
    assert "begun by an earlier version: take care that its validation images are the same" in capsys.readouterr().err
