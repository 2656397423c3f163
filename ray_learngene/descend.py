"""One descendant: expand, tune, measure, publish. A plain single process; knows nothing of Ray."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ray_learngene.checkpoints import StoreCheckpoints
from ray_learngene.config import SweepConfig
from ray_learngene.data.images import Images
from ray_learngene.engine import LabelObjective, TorchEngine, create_optimizer, resolve_device, resolve_precision
from ray_learngene.export import export_timm
from ray_learngene.methods import Learngene, create_method
from ray_learngene.provenance import fingerprint, provenance
from ray_learngene.specs import Spec, set_drop_path, timm_arguments
from ray_learngene.store import Store
from ray_learngene.training import Worker, train

# Settings of a sweep that decide what one descendant becomes; the others choose which, where and how it runs.
DECISIVE = {
    *("epochs", "batch_size", "min_lr", "warmup_epochs", "warmup_lr", "weight_decay", "clip_grad", "drop_path", "ema"),
    *(
        "precision",
        "scale",
        "ratio",
        "hflip",
        "color_jitter",
        "auto_augment",
        "reprob",
        "mixup",
        "cutmix",
        "mixup_prob",
    ),
    *("mixup_switch_prob", "smoothing", "repeats", "crop_pct", "interpolation", "accumulation", "holdout"),
}


@dataclass(frozen=True)
class Descendant:
    """What one trial trains, and its name in the store, which ends in a hash of everything that decides the result."""

    arm: str
    spec: Spec
    seed: int
    lr: float
    key: str

    @property
    def group(self) -> str:
        """What the trials of a learning-rate search have in common."""
        slug = self.arm.replace(":", ".").replace("=", "-")
        return f"{slug}-w{self.spec.width}-d{self.spec.depth:02d}-s{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.group}-{self.key}"


def descendant(
    arm: str, spec: Spec, seed: int, lr: float, config: SweepConfig, images: Images, learngene_version: str
) -> Descendant:
    """The descendant of an arm and a spec under a sweep's settings."""
    method = create_method(arm)
    facts = {
        "arm": {"method": method.name, **method.model_dump(mode="json")},
        "learngene": learngene_version if method.needs_learngene else None,
        "spec": spec.model_dump(),
        "seed": seed,
        "lr": lr,
        "data": images.train.fingerprint,
        "preprocessing": images.preprocessing.model_dump(mode="json"),
        "settings": config.model_dump(mode="json", include=DECISIVE),
    }
    return Descendant(arm, spec, seed, lr, fingerprint(facts)[:8])


def train_descendant(
    one: Descendant,
    learngene: Learngene,
    images: Images,
    config: SweepConfig,
    costs: dict[str, Any],
    facts: dict[str, Any],
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> dict[str, Any]:
    """Train one descendant from where its last checkpoint left it, and publish it.

    Args:
        costs: Its parameters, MACs, memory and measured latency.
        facts: What the sweep records with every descendant (learngene, its hash and cost).
        report: Called with the metrics of every epoch, the untuned model's first.

    Returns:
        Its row of the results table.
    """
    store = Store(config.store)
    name = f"{config.name}/{one.name}"
    checkpoints = StoreCheckpoints(store, name)
    if store.exists("descendant", name):  # published, and then the process died; the name says that it is the same
        checkpoints.remove()
        return store.manifest("descendant", name).metadata["row"]
    began = time.monotonic()
    device = resolve_device()
    autocast = resolve_precision(config.precision, device)
    method = create_method(one.arm)
    if learngene.labels != images.train.classes:
        learngene = learngene.without_head()
    model = method.expand(learngene if method.needs_learngene else None, one.spec, seed=one.seed)
    set_drop_path(model, config.drop_path)
    model.to(device)
    if config.compile:
        model.compile()
    settings = config.model_copy(update={"seed": one.seed, "lr": one.lr})
    optimizer = create_optimizer(model, settings)
    engine = TorchEngine(
        model, optimizer, accumulation=config.accumulation, clip_grad=config.clip_grad, autocast=autocast
    )
    progress, ema = train(
        engine,
        optimizer,
        LabelObjective(config.smoothing),
        images,
        settings,
        worker=Worker(device),
        checkpoints=checkpoints,
        checkpoint_due=lambda step, steps_per_epoch, seconds: seconds >= config.checkpoint_seconds,
        report=report,
        autocast=autocast,
        evaluate_first=True,
    )
    history = progress.history
    row = {
        "descendant": one.name,
        "sweep": config.name,
        "status": "finished",
        "error": None,
        "arm": one.arm,
        **{name: value for name, value in one.spec.model_dump().items() if name != "mlp_ratio"},
        "seed": one.seed,
        "lr": one.lr,
        "epochs": config.epochs,
        **costs,
        "top1_untuned": history[0]["top1"],
        "top1_epoch1": next((entry["top1"] for entry in history if entry["epoch"] >= 1), history[0]["top1"]),
        "top1": history[-1]["top1"],
        "ema_top1": history[-1].get("ema_top1"),
        "val_loss": history[-1]["val_loss"],
        "steps": progress.step,
        "images": progress.step * config.batch_size,
        "seconds": round(progress.seconds, 3),
        "overhead_seconds": 0.0,
        **(facts if method.needs_learngene else dict.fromkeys(facts)),
    }
    metadata = {
        "row": row,
        "history": history,
        "config": settings.model_dump(mode="json"),
        "labels": list(images.train.classes),
        **provenance(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arguments = timm_arguments(one.spec)
        export_timm(
            model, folder, labels=images.train.classes, preprocessing=images.preprocessing, model_args=arguments
        )
        if ema is not None:
            export_timm(
                ema,
                folder / "ema",
                labels=images.train.classes,
                preprocessing=images.preprocessing,
                model_args=arguments,
            )
        row["overhead_seconds"] = round(time.monotonic() - began - (progress.seconds - progress.resumed_seconds), 3)
        (folder / "metrics.json").write_text(json.dumps(metadata, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(row, config))
        store.publish("descendant", name, folder, metadata)
    checkpoints.remove()
    return row


def model_card(row: dict[str, Any], config: SweepConfig) -> str:
    """README.md of a descendant: what it is, how to load it, how good it is, where it comes from."""
    environment = Environment(loader=PackageLoader("ray_learngene"), undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("model_card.md").render(row=row, config=config)
