"""The commands of `learngene`, and the overview of them. It imports none of them."""

from __future__ import annotations

# command -> (configuration class, module of the package:function that takes it, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "ancestry": (
        "AncestryConfig",
        "distillation.train_ancestry:train_ancestry",
        "train an ancestry model, if you have none",
    ),
    "distill": ("DistillConfig", "distillation.distill:distill", "distil an ancestry model into a learngene"),
    "softlabels": (
        "SoftLabelsConfig",
        "distillation.soft_labels:fill",
        "cache the ancestry model's logits, for many distillations",
    ),
    "extract": (
        "ExtractConfig",
        "distillation.extract:extract",
        "take a learngene from a trained model, without distillation",
    ),
    "plan": ("PlanConfig", "cli.plan:print_plan", "print which sizes meet which budget, and what a sweep will cost"),
    "sweep": ("SweepConfig", "cli.sweep:print_sweep", "train descendants of many sizes from one learngene"),
    "bench": ("BenchConfig", "compare.compare:bench", "compare methods under one recipe, and what each costs"),
    "pull": ("PullConfig", "cli.pull:pull", "download the best model within a budget, verified"),
    "expand": (
        "ExpandConfig",
        "cli.expand:print_expansions",
        "make a model of any size from a learngene, without training",
    ),
    "export": (
        "ExportConfig",
        "cli.export:print_exports",
        "write ONNX, int8 or torch.export files of a model, compared with it",
    ),
    "measure": (
        "MeasureConfig",
        "cli.measure:measure",
        "time models on the device that will run them, and predict all other sizes",
    ),
    "submit": ("SubmitConfig", "cli.submit:print_job", "run a command as a job on a cluster, and follow it"),
    "evaluate": ("EvaluateConfig", "cli.evaluate:print_evaluation", "measure a pulled model with plain timm"),
    "list": ("ListConfig", "cli.catalog:print_list", "print what a store holds"),
    "show": ("ShowConfig", "cli.show:print_artefact", "print one artefact, or the leaderboard of a sweep"),
    "page": ("PageConfig", "pages.page:write_page", "write one HTML page to choose a model by"),
    "gc": ("GcConfig", "cli.gc:print_garbage", "print the leftovers of a store, and remove them with --delete"),
    "data check": ("CheckConfig", "cli.data:print_check", "name what is wrong with an image set"),
    "data convert": ("ConvertConfig", "cli.data:print_convert", "write an image set as resized Parquet shards"),
}
# commands that `learngene submit` takes
JOBS = ("ancestry", "distill", "softlabels", "extract", "sweep", "bench", "pull")


def overview(first: str = "") -> str:
    """Return the list of commands, or of those with this first word."""
    shown = {name.removeprefix(first): text for name, (_, _, text) in COMMANDS.items() if name.startswith(first)}
    width, command = max(map(len, shown)), f"learngene {first}COMMAND"
    lines = [f"  {name:{width}}  {text}" for name, text in shown.items()]
    return "\n".join(
        [
            f"usage: {command} [flags]",
            "",
            "Train one learngene, spawn a vision model for every budget.",
            "",
            *lines,
            "",
            f"Every flag can stand in a YAML file: {command} --config recipe.yaml [flags that override].",
            f"{command} --help explains a command; learngene --version prints the version.",
        ]
    )
