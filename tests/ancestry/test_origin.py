"""The licence of what is published follows from what it was made of; none is invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from timm.models import save_for_hf

from ray_learngene.ancestry.origin import origin_of, stored_origin
from ray_learngene.config import AncestryConfig, DistillConfig, ExpandConfig, SweepConfig
from ray_learngene.delivery.expand import expand
from ray_learngene.distillation.distill import distill
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.models.card import model_card
from ray_learngene.models.origin import Origin
from ray_learngene.store.store import Store
from ray_learngene.sweeps.sweep import sweep
from tests.data.image_files import write_class_folders

VIT: dict[str, Any] = {
    **{"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 1, "num_heads": 2},
    **{"class_token": False, "global_pool": "avg"},
}
COMMON: dict[str, Any] = {
    **{"data": "digits", "train_share": 0.1, "val_share": 0.1, "batch_size": 64, "epochs": 1, "warmup_epochs": 0},
}


@pytest.mark.parametrize(
    ("sources", "license"),
    [
        ([], None),
        (["apache-2.0"], "apache-2.0"),
        (["apache-2.0", None], None),
        (["cc-by-nc-4.0", None, "mit"], "cc-by-nc-4.0"),
        (["mit", "apache-2.0"], "apache-2.0 AND mit"),
        (["dinov3-license", "cc-by-nc-4.0"], "cc-by-nc-4.0 AND dinov3-license"),
    ],
)
def test_what_licence_sources_leave(sources: list[str | None], license: str | None) -> None:
    assert Origin.join([Origin(license=each) for each in sources]).license == license
    assert Origin.join([Origin(license=each) for each in sources], stated="mit").license == "mit"


@pytest.mark.parametrize(
    ("sources", "data", "license"),
    [
        ([], "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ([], "mit", None),
        (["mit"], "cc0-1.0", "mit"),
        (["mit"], "nc", "nc"),
        (["a"], "b", "a AND b"),
    ],
)
def test_what_licence_images_leave(sources: list[str], data: str, license: str | None) -> None:
    assert Origin.join([Origin(license=each) for each in sources], data_license=data).license == license


def test_a_model_inherits_what_the_card_of_its_images_forbids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_class_folders(tmp_path / "pets", {"cat": 12, "dog": 14})
    (data / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    common = {
        **COMMON,
        "data": str(data),
        "store": str(tmp_path / "store"),
        "train_share": 1,
        "batch_size": 4,
        "workers": 0,
    }
    train_ancestry(AncestryConfig(**common, name="a", model="deit_tiny_patch16_224", model_args=VIT))
    assert "states cc-by-nc-4.0, which restricts its use" in capsys.readouterr().out
    assert (
        stored_origin(Store(common["store"]).manifest("ancestry", "a"), Store(common["store"])).license
        == "cc-by-nc-4.0"
    )


def test_timms_weights_have_the_licence_that_timm_states(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    known = origin_of("levit_384", store)
    assert (known.license, known.base_models) == ("apache-2.0", ("timm/levit_384.fb_dist_in1k",))
    restricted = origin_of("vit_small_patch16_dinov3.lvd1689m", store)
    assert restricted.restricted and restricted.card_license() == {"license": "other", "license_name": "dinov3-license"}
    assert origin_of("no_such_model", store) == origin_of("store:ancestries/none", store) == Origin()


def test_what_a_card_says_is_one_line(tmp_path: Path) -> None:
    card = '---\nlicense: "mine\\n\\nevil: yes\\e[31m"\nbase_model: "a\\nb"\n---\n'
    (tmp_path / "README.md").write_text(card)
    found = origin_of(f"local-dir:{tmp_path}", Store(str(tmp_path / "store")))
    assert (found.license, found.base_models) == ("mine evil: yes�[31m", ("a b",))


@pytest.mark.parametrize(
    ("license", "fields"),
    [
        ("MIT", {"license": "mit"}),
        ("gpl-3.0", {"license": "gpl-3.0"}),
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("Our Company 1.0", {"license": "other", "license_name": "our-company-1.0"}),
        ("cc-by-sa-4.0 AND mit", {"license": "other", "license_name": "cc-by-sa-4.0-and-mit"}),
    ],
)
def test_a_card_names_a_licence_as_the_hub_does(license: str, fields: dict[str, str]) -> None:
    assert Origin(license=license).card_license() == fields
    assert Origin(license=license).restricted == (license != "MIT")


@pytest.mark.parametrize(
    ("data", "identifier"),
    [
        ("my photos", "my-photos"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("a -- b..", "a-b"),
        ("Größe", "Gr-e"),
        ("图", "images"),
    ],
)
def test_a_card_names_an_image_set_as_the_hub_takes_one(data: str, identifier: str) -> None:
    validate_repo_id(identifier)
    facts = {"parameters": 1, "labels": ["a"], "config": {"pretrained": False, "epochs": 1, "data": data}}
    facts |= {"metrics": {"top1": 50.0}, "cost": {"steps": 1, "images": 1, "seconds": 1.0}, "model": "x"}
    text = model_card(
        "ancestry_card.md",
        **{"name": "m", "origin": Origin(datasets=(data,)), "data": data, "split": "val", "metrics": {"top-1": 50.0}},
        **{"image": (3, 8, 8), "metadata": {**facts, "image": 8}},
    )
    card = ModelCard(text, ignore_metadata_errors=False).data
    assert (card.datasets, card.eval_results[0].dataset_type) == ([identifier], identifier)
    assert card.eval_results[0].dataset_name == data


def test_a_card_decides_over_settings_that_timm_copied(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", num_classes=2, **VIT)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    reference, store = f"local-dir:{tmp_path}", Store(str(tmp_path / "store"))
    assert origin_of(reference, store, model.pretrained_cfg).license is None  # timm copied apache-2.0
    restrictive = {**model.pretrained_cfg, "license": "cc-by-nc-4.0"}
    assert origin_of(reference, store, restrictive).license == "cc-by-nc-4.0"
    (tmp_path / "README.md").write_text("---\ntags: [timm, learngene]\n---\nof an earlier version, without a licence\n")
    assert origin_of(reference, store, model.pretrained_cfg).license is None
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: ours\n---\n")
    assert origin_of(reference, store, model.pretrained_cfg).license == "ours"
    (tmp_path / "README.md").write_text("---\nlicense: [oops\n---\n")
    assert origin_of(reference, store, model.pretrained_cfg).license is None


def test_a_licence_goes_from_ancestry_to_descendants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {**COMMON, "store": str(tmp_path / "store")}
    model: dict[str, Any] = {"model": "deit_tiny_patch16_224", "model_args": VIT}
    train_ancestry(AncestryConfig(**common, **model, name="nc", workers=0, license="cc-by-nc-4.0"))
    distill(
        DistillConfig(
            **common, name="g", workers=0, ancestry="store:ancestries/nc", preset="nano", depth=2, method="tleg"
        )
    )
    assert "store:ancestries/nc is licensed under cc-by-nc-4.0" in capsys.readouterr().out
    sweep(SweepConfig(**common, name="s", learngene="g", depths="1", in_process=True))
    assert "learngene g is licensed under cc-by-nc-4.0" in capsys.readouterr().out
    sweep(SweepConfig(**common, name="t", learngene="g", depths="1", in_process=True, arms="scratch", license="mit"))
    assert "is licensed under" not in capsys.readouterr().out
    store = Store(str(tmp_path / "store"))
    expand(ExpandConfig(learngene="g", depth=2, store=store.uri, out=str(tmp_path / "expanded")))
    assert "learngene g is licensed under cc-by-nc-4.0" in capsys.readouterr().out
    expected = {"s/tleg": "cc-by-nc-4.0", "s/scratch": None, "t/scratch": "mit"}
    found = {}
    for manifest in [store.manifest("ancestry", "nc"), *store.manifests("descendant")]:
        folder = store.download(manifest.kind, manifest.name, tmp_path / manifest.name)
        settings = timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg
        card = ModelCard.load(folder / "README.md").data
        name = manifest.name.split("/")[-1]
        assert settings["tag"] == card.model_name == name
        assert settings.get("license") == card.license == stored_origin(manifest, store).license
        assert (card.datasets, card.base_model, card.eval_results[0].dataset_name) == (["digits"], None, "digits")
        top1 = manifest.metadata.get("row", manifest.metadata.get("metrics"))["top1"]
        assert card.eval_results[0].metric_value == round(top1 / 100, 6)
        found[manifest.name.partition("-")[0]] = card.license
    assert found == {"nc": "cc-by-nc-4.0", **expected}


def test_artefacts_of_an_earlier_version_have_the_licence_of_what_they_name(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x.txt").write_text("x")
    made = {
        "mine": {"config": {"data": "shoes", "model": "levit_384", "pretrained": False}},
        "tuned": {"config": {"data": "shoes", "model": "levit_384", "pretrained": True}},
    }
    for name, metadata in made.items():
        store.publish("ancestry", name, tmp_path / "files", metadata)
        store.publish("learngene", name, tmp_path / "files", {"ancestry": f"store:ancestries/{name}", "config": {}})
    origins = {name: stored_origin(store.manifest("learngene", name), store) for name in made}
    assert origins["mine"] == Origin(datasets=("shoes",))
    assert origins["tuned"] == Origin(
        license="apache-2.0", base_models=("timm/levit_384.fb_dist_in1k",), datasets=("shoes",)
    )
    store.publish("learngene", "loop", tmp_path / "files", {"source": "store:learngenes/loop"})
    assert stored_origin(store.manifest("learngene", "loop"), store) == Origin()
