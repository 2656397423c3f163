"""A whole benchmark in this process: what it trains, what it writes, and that it goes on instead of starting over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas
import pytest

from ray_learngene.compare.compare import bench
from ray_learngene.compare.significance import gains
from ray_learngene.config import AncestryConfig, BenchArm, BenchConfig, DistillConfig, SweepConfig, load_config
from ray_learngene.distillation.distill import distill
from ray_learngene.distillation.train_ancestry import train_ancestry
from ray_learngene.errors import UserError
from ray_learngene.store.store import Store
from tests.data.image_files import write_class_folders

# two steps an epoch, of all training images and of those that a search trains on
QUICK = {"data": "digits", "train_share": 0.4, "batch_size": 256, "hflip": 0.0, "warmup_epochs": 0, "drop_path": 0.0}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BenchConfig:
    root = tmp_path_factory.mktemp("bench")
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    train_ancestry(
        AncestryConfig(
            **QUICK,
            name="a",
            store=str(root / "store"),
            workers=0,
            epochs=1,
            model="deit_tiny_patch16_224",
            model_args={**size, "class_token": False, "global_pool": "avg"},
        )
    )
    return BenchConfig(
        **QUICK,
        name="b",
        store=str(root / "store"),
        out=str(root / "out"),
        ancestry="store:ancestries/a",
        preset="nano",
        depth=3,
        depths="2,3",
        arms={
            "any-size": {"method": "any-size:shallowest=1"},
            "ligo": {"method": "ligo:fit=1"},
            "distilled": {"method": "scratch", "tune": "distilled"},
            "scratch": {"method": "scratch", "tune": "full"},
        },
        seeds=2,
        epochs=1,
        tune_epochs=1,
        search_epochs=1,
        lrs=(1e-2, 2e-2),
        search_more=1,
        front=2,
        tune_lrs=(1e-3,),
        in_process=True,
    )


@pytest.fixture(scope="module")
def table(config: BenchConfig) -> pandas.DataFrame:
    return bench(config)


def test_a_benchmark_writes_its_tables_and_plots(
    config: BenchConfig, table: pandas.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(table) == 5 * 2 * 2  # arms and the reference for twice its epochs, sizes, seeds
    assert (table["status"] == "finished").all()
    out = Path(config.out)
    assert {path.name for path in out.iterdir()} == {
        *("results.parquet", "results.md", "runs.md", "accuracy.svg", "break-even.svg")
    }
    pandas.testing.assert_frame_equal(
        pandas.read_parquet(out / "results.parquet")[["arm", "top1"]], table[["arm", "top1"]]
    )
    assert Store(config.store).read_table("benches/b/results.parquet").num_rows == len(table)
    by_arm = table.groupby("arm")[["tune_flops", "learngene_flops", "search_flops", "fit_steps"]].sum()
    assert (by_arm["tune_flops"] > 0).all() and (by_arm["search_flops"] > 0).all()
    assert by_arm["learngene_flops"]["scratch"] == 0 and by_arm["fit_steps"]["ligo"] == 4
    # two distillations and two sizes of tuning at every learning rate were chosen from
    assert (table.loc[table["arm"] == "scratch-x2", "epochs"] == 2).all()
    assert table["same_images"].all() and (table["test_images"] == 359).all()
    assert {len(tried) for tried in table["lrs"]} == {1, 3}  # the rate at the border added one
    page, runs = (out / "results.md").read_text(), (out / "runs.md").read_text()
    for arm in table["arm"].unique():
        assert f"\n| {arm} |" in page
    assert "\n\n\n\n" not in page and page.count("\n|---") == 10
    assert "| the ancestry saw the images that the rivals saw | yes |" in page
    linked = {target for _, target in re.findall(r"\]\((runs\.md#([\w-]+))\)", page)}
    assert linked == set(re.findall(r"^## ([\w-]+)$", runs, re.MULTILINE)) and len(linked) == 10
    assert all(f"`descendants/{row.sweep}/{row.descendant}`" in runs for row in table.itertuples())
    again = bench(config)
    said = capsys.readouterr().out
    assert said.count("0 distillations to run") == 3 and "0 descendants to train" in said
    pandas.testing.assert_frame_equal(table, again)


@pytest.mark.usefixtures("table")
def test_another_recipe_under_the_same_name_is_refused(config: BenchConfig) -> None:
    with pytest.raises(UserError, match="the benchmark 'b' in .* was made with epochs 1, not 2: choose another --name"):
        bench(config.model_copy(update={"epochs": 2}))


@pytest.mark.usefixtures("table")
def test_learngenes_are_tuned_on_other_image_sets(config: BenchConfig, tmp_path: Path) -> None:
    """Only sweeps on that set are added to a benchmark that is finished; its classes are others."""
    data = write_class_folders(tmp_path / "pets", {"cat": 12, "dog": 14})
    sets = {"pets": {"data": str(data), "epochs": 2, "batch_size": 8, "tune_lrs": (1e-3, 2e-3), "lrs": (1e-2,)}}
    out = tmp_path / "out"
    bench(config.model_copy(update={"transfer": sets, "transfer_depths": "2", "search_more": 0, "out": str(out)}))
    moved = pandas.read_parquet(out / "transfer.parquet")
    found = {(row.arm, row.seed, row.depth, row.epochs, row.lr in (1e-3, 2e-3)) for row in moved.itertuples()}
    short = {(arm, seed, 2, 1, True) for arm in ("any-size", "ligo") for seed in (0, 1)}
    assert found == short | {("scratch", seed, 2, 2, False) for seed in (0, 1)}
    store = Store(config.store)
    assert store.read_table("benches/b/transfer.parquet").num_rows == len(moved)
    descendants = [
        one.metadata for one in store.manifests("descendant", under="b-to-pets-final-short-e1-w48-d2-lr0.001")
    ]
    descendants += [
        one.metadata for one in store.manifests("descendant", under="b-to-pets-final-short-e1-w48-d2-lr0.002")
    ]
    assert {tuple(one["labels"]) for one in descendants} == {("cat", "dog")}
    page = (out / "results.md").read_text().partition("## On other image sets")[2]
    gain = gains(moved, "scratch")["ligo"]
    assert re.search(rf"\n\| ligo \| .* \(1\) \| {re.escape(f'{gain.mean:+.1f}')}", page)
    assert re.search(r"\n\| scratch \| .* \(2\) \| - \|", page)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": "./nowhere"}, "no image set './nowhere'"),
        ({"epochs": 3}, "transfer 'x' needs data"),
        ({"data": "digits", "preset": "ti"}, "transfer 'x': preset cannot differ"),
        ({"data": "digits", "epochs": -1}, "transfer 'x': epochs"),
    ],
)
def test_image_sets_that_cannot_be_tuned_on_are_refused_before_training(
    config: BenchConfig, settings: dict[str, Any], says: str
) -> None:
    given = {**config.model_dump(exclude_unset=True), "name": "new", "transfer": {"x": settings}}
    with pytest.raises(UserError, match=re.escape(says)):
        bench(load_config(BenchConfig, given))
    assert not any(one.name.startswith("new") for one in Store(config.store).manifests("learngene"))


def test_a_gain_is_paired_over_seeds_and_averaged_over_sets() -> None:
    columns = ("set", "arm", "width", "depth", "seed", "top1")
    scores = {("a", 0): (50, 53), ("a", 1): (52, 54), ("b", 0): (70, 71), ("b", 1): (70, 74)}
    rows = [
        (label, arm, 8, 2, seed, top1)
        for (label, seed), pair in scores.items()
        for arm, top1 in zip(("scratch", "wave"), pair, strict=True)
    ]
    found = gains(pandas.DataFrame(rows, columns=columns), "scratch")
    assert list(found) == ["wave"]
    assert (found["wave"].mean, found["wave"].seeds) == (2.5, 2)  # 2 with one seed, 3 with the other


def test_a_learning_rate_that_diverges_is_never_chosen(config: BenchConfig, tmp_path: Path) -> None:
    arms = {name: config.arms[name] for name in ("any-size", "scratch")}
    some = {"arms": arms, "seeds": 1, "depths": "2", "out": str(tmp_path), "front": 1, "search_more": 0}
    table = bench(config.model_copy(update={**some, "lrs": (1e-2, 1e30), "tune_lrs": (1e-3, 1e30)}))
    assert set(table["lr"]) == {1e-2, 1e-3} and (table[table["arm"] == "any-size"]["distill_lr"] == 1e-2).all()


def test_a_search_that_fails_for_another_reason_chooses_nothing(
    config: BenchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {name: config.arms[name] for name in ("any-size", "scratch")}
    once = {"seeds": 1, "depths": "2", "front": 1, "search_more": 0}
    some = config.model_copy(update={"name": "c", "arms": arms, "out": str(tmp_path), **once})

    def full(run: DistillConfig, **options: Any) -> None:
        if run.lr == 2e-2:
            raise UserError("the disk is full")
        distill(run, **options)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="1 distillation failed: .*the disk is full"):
        patched.setattr("ray_learngene.compare.distillations.distill", full)
        bench(some)
    two = some.model_copy(update={"tune_lrs": (1e-3, 2e-3)})

    def unreadable(run: SweepConfig, **options: Any) -> None:
        raise UserError("1 of 2 descendants failed: the disk is full")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="descendants failed: the disk is full"):
        patched.setattr("ray_learngene.compare.searches.sweep", unreadable)
        bench(two)
    assert set(bench(two)["status"]) == {"finished"}


@pytest.mark.slow
def test_a_row_is_of_the_learngene_that_is_there_now(config: BenchConfig) -> None:
    """A replaced learngene's descendants stay in the store, and out of the table."""
    config = config.model_copy(update={"tune_lrs": (1e-3, 2e-3), "front": 1, "search_more": 0})
    before = bench(config)
    name = next(name for name in before["learngene"].dropna() if "any-size" in name and name.endswith("s0"))
    made = Store(config.store).manifest("learngene", name).metadata["config"]
    distill(DistillConfig(**{**made, "store": config.store, "overwrite": True, "batch_size": 128}))
    after = bench(config)
    assert len(after) == len(before)
    assert not after.duplicated(["arm", "depth", "seed"]).any()
    searched = [table[table["arm"] == "any-size"]["search_images"].iloc[0] for table in (before, after)]
    assert searched[0] == searched[1] > 0  # the search of the replaced one is not counted too


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("arm", "says"),
    [
        (BenchArm(method="any-size:shallowest=1:step=1"), 'method "any-size:shallowest=1", not "any-size:shallow'),
        (BenchArm(method="any-size:shallowest=1", epochs=2), "epochs 1, not 2"),
        (BenchArm(method="any-size:shallowest=1", settings={"alpha": 0.5}), "alpha 1.0, not 0.5"),
    ],
)
def test_an_arm_that_keeps_its_name_but_not_what_it_is_is_refused(
    config: BenchConfig, arm: BenchArm, says: str
) -> None:
    arms = {**config.arms, "any-size": arm}
    with pytest.raises(UserError, match=f"was made with {says}.*: give the arm another name"):
        bench(config.model_copy(update={"arms": arms}))


def test_a_folder_that_cannot_be_is_refused_first(config: BenchConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out .*file/results.md cannot be a folder: a file stands in its way"):
        bench(config.model_copy(update={"out": str(tmp_path / "file")}))
