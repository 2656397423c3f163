"""Names and fingerprints of runs depend on exactly these settings; a change of the list loses what users made."""

from __future__ import annotations

from ray_learngene.config import (
    AncestryConfig,
    AugmentationConfig,
    BenchConfig,
    ClusterConfig,
    DistillationConfig,
    DistillConfig,
    OptimizationConfig,
    SpeedConfig,
    SweepConfig,
    WorkersConfig,
)
from ray_learngene.config.base import Config, what_decides
from ray_learngene.config.decides import BENCHMARK, DESCENDANT, RUN, TAUGHT_DESCENDANT, Decides

ELSEWHERE = {
    "store",
    "store_patience",
    "storage_options",
    "check_images",
    "unreadable",
    "loader_workers",
    "cache_gb",
    "data_dir",
    "track",
}


def later(cls: type[Config]) -> set[str]:
    return {name for name, field in cls.model_fields.items() if "later" in (field.json_schema_extra or {})}


def fields(cls: type[Config], what: frozenset[Decides]) -> set[str]:
    """Return the fields that decide one of these, without those that came later."""
    return {name for name in cls.model_fields if what_decides(cls, name) in what} - later(cls)


def test_a_run_is_continued_under_all_settings_that_decide_its_result() -> None:
    operational = {*ELSEWHERE, "overwrite", "license", *SpeedConfig.model_fields, *WorkersConfig.model_fields} - {
        "zero"
    }
    for cls in (AncestryConfig, DistillConfig):
        assert fields(cls, RUN) == cls.model_fields.keys() - operational - later(cls)


def test_a_descendant_is_named_after_all_settings_that_decide_what_it_becomes() -> None:
    own = {*OptimizationConfig.model_fields, *AugmentationConfig.model_fields, "holdout", "validate_on", "val_share"}
    own -= later(SweepConfig)
    assert fields(SweepConfig, DESCENDANT) == own - {"compile"}
    assert fields(SweepConfig, TAUGHT_DESCENDANT) == (own - {"compile"}) | DistillationConfig.model_fields.keys()


def test_models_may_be_added_to_a_benchmark() -> None:
    added = {"arms", "reference", "depths", "widths", "seeds", "lrs", "tune_lrs", "front", "front_gain", "search_more"}
    added |= {"budget", "transfer", "transfer_depths"}
    executed = {"out", "in_process", "cpus_per_trial", "gpus_per_trial", "siblings"}
    executed |= {*ELSEWHERE, *ClusterConfig.model_fields, *SpeedConfig.model_fields}
    assert fields(BenchConfig, BENCHMARK) == BenchConfig.model_fields.keys() - added - executed - later(BenchConfig)


def test_the_views_do_not_depend_on_what_the_teacher_does_not_see() -> None:
    seen = AugmentationConfig.model_fields.keys() - {"smoothing", "crop_pct"}
    assert fields(AugmentationConfig, frozenset({"views"})) == seen
