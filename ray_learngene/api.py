"""The Python API: the functions that the command line calls, with the same settings as keywords.

    import ray_learngene as lg

    store = lg.Store("s3://bucket/store")  # or a folder
    gene = lg.distill(ancestry="store:ancestries/photos", data="photos", preset="s", name="photos", store=store)
    table = lg.sweep(gene, budgets=["params<=8M", "latency<=8ms"], epochs=10)
    model, transform = lg.pull(store, max_params=8_000_000).load()

Every keyword is a flag of the command of the same name; `api.pyi` lists them with types and defaults. A mistake raises
`UserError`, whose text is one line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ray_learngene.cli.output import shown_log
from ray_learngene.config.base import Config, load_config
from ray_learngene.errors import Diverged, Interrupted, UserError
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store

if TYPE_CHECKING:
    import pandas
    from ray.train import UserCallback
    from ray.tune import Callback
    from torch import nn

    from ray_learngene.delivery.export import Exported
    from ray_learngene.delivery.features import FeatureScores
    from ray_learngene.store.timings import Record
    from ray_learngene.sweeps.plan import Plan
    from ray_learngene.training.evaluation import Scores

__all__ = [
    "Artefact",
    "Diverged",
    "Interrupted",
    "Model",
    "Store",
    "UserError",
    "bench",
    "distill",
    "evaluate",
    "expand",
    "expand_all",
    "export",
    "extract",
    "measure",
    "page",
    "plan",
    "pull",
    "shown_log",
    "sweep",
    "train_ancestry",
]

ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True, repr=False)
class Artefact:
    """A learngene or an ancestry model in a store.

    Attributes:
        manifest: Its files with their hashes, settings, metrics and cost.
        images: Settings of its image set as they were given here; the manifest has no folders of local paths.
    """

    store: Store
    manifest: Manifest
    images: dict[str, Any] | None = None

    def __repr__(self) -> str:
        one = self.manifest
        return f"Artefact({one.kind} {one.name!r}, version {one.version}, in {self.store.uri!r})"

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.manifest.name

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured after training: `top1` in percent, and `val_loss`."""
        return dict(self.manifest.metadata["metrics"])


@dataclass(frozen=True)
class Model:
    """A model folder that was pulled from a store or expanded from a learngene.

    Attributes:
        path: The folder, in timm's own format.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def load(self) -> tuple[nn.Module, Callable[..., Any]]:
        """Load the model in evaluation mode, and the transform that makes its input of a PIL image.

        Returns:
            A plain timm model, and a torchvision transform to a tensor `[3, H, W]`.

        Raises:
            UserError: the folder is no timm model folder, as that of a learngene.
        """
        from ray_learngene.models.timm_folder import load_timm, transform_of

        model = load_timm(Path(self.path).expanduser()).eval()  # Model("best") is natural to write
        return model, transform_of(model)


def train_ancestry(*, callbacks: Sequence[UserCallback] = (), **settings: Any) -> Artefact:
    """Train an ancestry model and publish it, as `learngene ancestry` does.

    Args:
        callbacks: Ray Train's, as of `distill`.

    Raises:
        UserError: a setting is wrong; nothing has been trained then.
        Interrupted: SIGTERM came; the same call continues.
    """
    from ray_learngene.config import AncestryConfig
    from ray_learngene.distillation.train_ancestry import train_ancestry

    config = _configure(AncestryConfig, settings)
    return Artefact(Store.of(config), train_ancestry(config, callbacks), _images_of(config))


def distill(*, callbacks: Sequence[UserCallback] = (), **settings: Any) -> Artefact:
    """Distil an ancestry model into a learngene and publish it, as `learngene distill` does.

    Args:
        callbacks: Ray Train's (`ray.train.UserCallback`), which run in its controller; only with workers.

    Raises:
        UserError: a setting is wrong; nothing has been trained then.
        Interrupted: SIGTERM came; the same call continues.
    """
    from ray_learngene.config import DistillConfig
    from ray_learngene.distillation.distill import distill

    config = _configure(DistillConfig, settings)
    return Artefact(Store.of(config), distill(config, callbacks), _images_of(config))


def extract(**settings: Any) -> Artefact:
    """Take a learngene from a trained model and publish it, as `learngene extract` does.

    Raises:
        UserError: the model or the method does not allow it.
    """
    from ray_learngene.config import ExtractConfig
    from ray_learngene.distillation.extract import extract

    config = _configure(ExtractConfig, settings)
    return Artefact(Store.of(config), extract(config), _images_of(config))


def sweep(learngene: Artefact | str, *, callbacks: Sequence[Callback] = (), **settings: Any) -> pandas.DataFrame:
    """Train descendants of a learngene and publish each, as `learngene sweep` does.

    Args:
        learngene: What `distill` or `extract` returned, or its name in the store. Of the former the store, the image
            set and the name of the sweep follow, where the settings do not say otherwise.
        callbacks: Ray Tune's (`ray.tune.Callback`), which run in this process. With `siblings=1` every descendant is a
            trial of its own.

    Returns:
        The results table: one row per descendant.

    Raises:
        UserError: a setting is wrong, or some descendants failed; the others are published then.
        Interrupted: SIGTERM came; the same call continues.
    """
    from ray_learngene.config import SweepConfig
    from ray_learngene.sweeps.sweep import sweep

    return sweep(_configure(SweepConfig, _of_learngene(learngene, settings)), callbacks)


def plan(learngene: Artefact | str | None = None, **settings: Any) -> Plan:
    """Say which sizes meet which budget and what the sweep will cost, as `learngene plan` does; nothing is trained.

    Args:
        learngene: As in `sweep`, whose settings may be given as they are. None: give `student` or `preset`, whose
            sizes are then planned without a learngene.
    """
    from ray_learngene.cli.plan import plan
    from ray_learngene.config import PlanConfig

    return plan(_configure(PlanConfig, _of_learngene(learngene, settings) if learngene else settings))


def bench(**settings: Any) -> pandas.DataFrame:
    """Compare methods under one recipe, as `learngene bench` does.

    Returns:
        One row per descendant.
    """
    from ray_learngene.compare.compare import bench
    from ray_learngene.config import BenchConfig

    return bench(_configure(BenchConfig, settings))


def pull(store: Store | str, artefact: str | None = None, **settings: Any) -> Model:
    """Bring the most accurate descendant within limits, or an artefact by its name, to a local folder.

    Every file is checked against its hash before the folder has its name. Nothing but a thin client is needed: neither
    torch nor Ray.

    Args:
        store: The store, or its URI.
        artefact: KIND/NAME, as `learngenes/photos`; None chooses among the descendants.

    Raises:
        UserError: nothing is within the limits, the folder exists, or the store cannot be reached.
    """
    from ray_learngene.cli.pull import pull
    from ray_learngene.config import PullConfig

    return Model(pull(_configure(PullConfig, {"store": store, "artefact": artefact, **settings})))


def expand(learngene: Artefact | str, **settings: Any) -> Model:
    """Make a model of one size from a learngene, without training, as `learngene expand` does.

        model, transform = lg.expand(gene, max_params="3.2M").load()

    Args:
        learngene: What `distill` or `extract` returned, or its name in the store.

    Raises:
        UserError: the learngene or the settings do not allow it, or name several sizes (then use `expand_all`).
        NothingWithin: no size is within the limits.
    """
    from ray_learngene.config import ExpandConfig
    from ray_learngene.delivery.expand import expand

    config = _configure(ExpandConfig, {**_named(learngene), **settings})
    if config.many:
        raise UserError("depths and widths name several sizes: use expand_all, or give depth and width")
    return Model(expand(config)[0].path)


def expand_all(learngene: Artefact | str, **settings: Any) -> list[Model]:
    """Make a model of every size that `depths` and `widths` name; the learngene is read once."""
    from ray_learngene.config import ExpandConfig
    from ray_learngene.delivery.expand import expand

    return [Model(one.path) for one in expand(_configure(ExpandConfig, {**_named(learngene), **settings}))]


def page(store: Store | str, **settings: Any) -> Path:
    """Write a page to choose a model by, of all sweeps of a store, as `learngene page` does.

    Args:
        store: The store, or its URI.

    Returns:
        The path of the HTML file.

    Raises:
        UserError: a sweep is not there, or the file cannot be written.
    """
    from ray_learngene.config import PageConfig
    from ray_learngene.pages.page import write_page

    return write_page(_configure(PageConfig, {"store": store, **settings}))


def export(model: Model | str | Path, **settings: Any) -> list[Exported]:
    """Write ONNX, int8 or torch.export files of a model folder, compared with it, as `learngene export` does.

        [onnx] = lg.export(model, format="onnx", data="photos", out="phone")

    Raises:
        UserError: a package is missing, the architecture does not export, or a file computes something else.
    """
    from ray_learngene.config import ExportConfig
    from ray_learngene.delivery.export import export

    return export(_configure(ExportConfig, {"model": model, **settings}))


def measure(models: Artefact | Model | str | Path | Sequence[Model | str | Path], **settings: Any) -> list[Record]:
    """Time models on this device, as `learngene measure` does, and publish the record.

        lg.measure(gene, device="laptop")  # from a few of its sizes, all others are predicted
        lg.sweep(gene, budgets="latency@laptop<=8ms")

    Args:
        models: A learngene, or models, folders or ONNX files.

    Raises:
        UserError: a model cannot be timed, or computes something else than its golden file.
    """
    from ray_learngene.cli.measure import measure
    from ray_learngene.config import MeasureConfig

    if isinstance(models, Artefact):
        return measure(_configure(MeasureConfig, {**_named(models), **settings}))
    several = models if isinstance(models, list | tuple) else [models]
    paths = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in several]
    return measure(_configure(MeasureConfig, {"models": paths, **settings}))


def evaluate(model: Model | str | Path, **settings: Any) -> Scores | FeatureScores:
    """Measure a pulled model on the validation split of an image set, as `learngene evaluate` does.

    A model without a head is measured by k nearest neighbours and a linear probe.

    Raises:
        UserError: it is no timm model folder, or its classes are not those of the images.
    """
    from ray_learngene.config import EvaluateConfig
    from ray_learngene.delivery.evaluate import evaluate_model

    return evaluate_model(_configure(EvaluateConfig, {"model": model, **settings}))


def _named(learngene: Artefact | str) -> dict[str, Any]:
    """Return the settings that name a learngene."""
    if isinstance(learngene, Artefact):
        return {"store": learngene.store, "learngene": learngene.name}
    return {"learngene": learngene}


def _of_learngene(learngene: Artefact | str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a sweep with those that its learngene gives."""
    if isinstance(learngene, Artefact):
        images = learngene.images or _images_of(learngene.manifest.metadata["config"])
        settings = {"name": learngene.name, **images, **settings}
    return {**_named(learngene), **settings}


def _images_of(config: Config | dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the image set among those of a learngene."""
    from ray_learngene.config import DataConfig

    return {name: value for name, value in dict(config).items() if name in DataConfig.model_fields}


def _configure(cls: type[ConfigT], settings: dict[str, Any]) -> ConfigT:
    """Return the typed configuration of keywords; a store may be an object, and every path a `Path`."""
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}
    if isinstance(store := values.get("store"), Store):
        values |= {"store": store.uri, "store_patience": store.patience}
    return load_config(cls, values, keywords=True)
