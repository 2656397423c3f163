"""Soft labels by the commands."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ray_learngene.ancestry.cache import FILE
from ray_learngene.cli.main import main
from ray_learngene.distillation.soft_labels import Filling, Shard
from ray_learngene.methods.base import Learngene
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import export_timm
from ray_learngene.store.store import Store
from tests.ancestry.soft_label_runs import equal, vision_transformer


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a small distillation in this process."""
    folder = tmp_path_factory.mktemp("model")
    model = vision_transformer()
    labels = tuple(str(digit) for digit in range(10))
    statistics = (0.5, 0.5, 0.5)
    export_timm(
        model,
        folder / "model",
        labels=labels,
        preprocessing=Preprocessing(
            image_size=8, mean=statistics, std=statistics, crop_pct=1.0, interpolation="bicubic"
        ),
    )
    words = f"--data digits --ancestry local-dir:{folder / 'model'} --preset nano --depth 2 --store {folder / 'store'}"
    words += " --train-share 0.1 --val-share 0.1 --batch-size 32 --epochs 2 --warmup-epochs 0 --workers 0 --soft-labels"
    return words.split()


def learngene_of(flags: list[str], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    store = Store(flags[flags.index("--store") + 1])
    manifest = store.manifest("learngene", name)
    files = (store.read_bytes("learngene", name, f"learngene.{kind}") for kind in ("safetensors", "json"))
    return Learngene.from_bytes(*files).tensors, manifest.metadata["cost"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_soft_labels_after_the_part_that_was_begun(
    number: int, status: int, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ending(filling: Filling, shard: Shard, *more: Any) -> None:
        os.kill(os.getpid(), number)
        compute(filling, shard, *more)

    compute, seed = Filling.compute, ["--view-seed", str(number)]
    with monkeypatch.context() as patched:
        patched.setattr(Filling, "compute", ending)
        assert main(["softlabels", *flags, *seed]) == status
    assert "after 1 of 2 parts; run the same command again to continue" in capsys.readouterr().err
    assert main(["softlabels", *flags, *seed]) == 0
    assert "1 part of epochs to compute" in capsys.readouterr().out


def test_the_commands_share_one_cache(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    method = ["--method", "any-size:parts=2:shallowest=1:stages=2", "--soft-labels-dtype", "float32"]
    store = Store(flags[flags.index("--store") + 1])
    others = {manifest.name.partition("/")[0] for manifest in store.manifests("softlabels")}
    assert main(["softlabels", *flags, *method, "--epochs", "1"]) == 0
    assert "1 part of epochs to compute" in capsys.readouterr().out
    assert main(["distill", *flags, *method, "--name", "one"]) == 0
    assert main(["distill", *flags, *method, "--name", "two", "--view-seed", "0", "--seed", "0"]) == 0
    assert main(["distill", *flags, *method, "--name", "online", "--no-soft-labels"]) == 0
    (one, cost_one), (two, cost_two), (online, cost_online) = (
        learngene_of(flags, name) for name in ("one", "two", "online")
    )
    assert equal(one, two) and equal(one, online)
    assert cost_online["teacher_flops"] == 2 * cost_one["teacher_flops"] > 0, "it asked in the second epoch only"
    assert cost_two["teacher_flops"] == 0 and cost_two["flops"] == cost_online["flops"]
    capsys.readouterr()
    slowly = ["--finish-batches", "loader", "--checkpoint-uploads", "wait", "--loss-check-steps", "1"]
    assert main(["distill", *flags, *method, "--name", "one", *slowly]) == 0
    assert "made with these settings: nothing to do" in capsys.readouterr().out
    assert main(["softlabels", *flags, *method]) == 0
    assert "nothing to do" in capsys.readouterr().out
    (key,) = {manifest.name.partition("/")[0] for manifest in store.manifests("softlabels")} - others
    assert main(["list", "--store", store.uri]) == 0
    assert f"softlabels/{key}" in capsys.readouterr().out
    assert main(["show", f"softlabels/{key}", "--store", store.uri]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["epochs"] == 2 and facts["cost"] == {
        "images": cost_online["images"],
        "teacher_flops": cost_online["teacher_flops"],
    }


def test_a_damaged_file_is_one_line_and_can_be_computed_anew(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags, "--epochs", "1", "--seed", "8"]
    assert main(["softlabels", *flags]) == 0
    store = Store(flags[flags.index("--store") + 1])
    newest = max(Path(store.uri).glob(f"softlabels/*/*/*/{FILE}"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-9])
    capsys.readouterr()
    assert main(["distill", *flags, "--name", "damaged"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "softlabels --overwrite" in error and "Traceback" not in error
    assert main(["softlabels", *flags, "--overwrite"]) == 0
    assert main(["distill", *flags, "--name", "damaged"]) == 0
    assert learngene_of(flags, "damaged")[1]["teacher_flops"] == 0


def test_descendants_read_them_too(flags: list[str]) -> None:
    assert main(["distill", *flags, "--name", "untrained", "--epochs", "0"]) == 0
    values = {flag: flags[flags.index(flag) + 1] for flag in flags if flag.startswith("--") and flag != "--soft-labels"}
    for flag in ("--preset", "--depth", "--workers"):
        del values[flag]
    values |= {"--learngene": "untrained", "--arms": "scratch", "--depths": "1", "--epochs": "1", "--drop-path": "0"}
    words = [word for pair in values.items() for word in pair]
    for name in ("first", "second"):
        assert main(["sweep", *words, "--name", name, "--in-process", "--soft-labels", "--view-seed", "9"]) == 0
    store = Store(values["--store"])
    first, second = (store.manifests("descendant", under=name)[0].metadata["row"] for name in ("first", "second"))
    assert first["teacher_flops"] > 0 == second["teacher_flops"]
    assert first["val_loss"] == second["val_loss"]


def test_both_trainings_of_an_untied_distillation_find_their_soft_labels(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--method", "any-size:shallowest=1", "--untied-epochs", "3", "--view-seed", "77"]
    assert main(["softlabels", *flags, *both]) == 0
    assert "3 parts of epochs to compute" in capsys.readouterr().out
    assert main(["distill", *flags, *both, "--name", "both"]) == 0
    assert [learngene_of(flags, name)[1]["teacher_flops"] for name in ("both-shared", "both")] == [0, 0]
