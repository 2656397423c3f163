"""Train an ancestry model.

learngene ancestry --data photos --model levit_384 --pretrained --name photos --epochs 20 --workers 1
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ray_learngene.ancestry.model import create_timm
from ray_learngene.ancestry.origin import log_license, origin_of
from ray_learngene.config import AncestryConfig
from ray_learngene.config.image import ImageShape
from ray_learngene.data.class_names import order_of
from ray_learngene.data.pipeline import ImagePipeline, checked_image_sets
from ray_learngene.distillation.run import run
from ray_learngene.distillation.task import Task, open_store
from ray_learngene.errors import TooLarge, UserError
from ray_learngene.models.card import model_card
from ray_learngene.models.image_fit import fitting, misfit, own_image
from ray_learngene.models.meta import on_meta
from ray_learngene.models.origin import Origin, data_name
from ray_learngene.models.preprocessing import Preprocessing
from ray_learngene.models.timm_folder import export_timm, labels_of
from ray_learngene.provenance import publishable
from ray_learngene.store.manifest import Manifest
from ray_learngene.training.evaluation import LabelScorer, Scorer
from ray_learngene.training.flops import training_flops
from ray_learngene.training.objectives import LabelObjective, Objective

if TYPE_CHECKING:
    from ray.train import UserCallback

log = logging.getLogger(__name__)


@dataclass
class AncestryTask(Task):
    """Cross-entropy training of any timm model."""

    kind = "ancestry"

    config: AncestryConfig
    labels: tuple[str, ...]

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective:
        return LabelObjective(self.config.smoothing)

    def scorer(self, device: torch.device, autocast: torch.dtype | None) -> Scorer:
        return LabelScorer(device, autocast)

    def flops(self, steps: int) -> dict[str, int]:
        image = self.images.preprocessing.image_size
        return {
            "flops": training_flops(self.module, image, batch=self.config.batch_size, steps=steps),
            "teacher_flops": 0,
        }

    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        export_timm(
            module,
            folder,
            labels=self.labels,
            preprocessing=self.images.preprocessing,
            tag=self.config.name,
            origin=self.origin,
        )
        return {
            "model": publishable(self.config.model),
            "model_args": publishable(self.config.model_args),
            "labels": list(self.labels),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }

    def card(self, metadata: dict[str, Any]) -> str:
        metrics = metadata["metrics"]
        averaged = {"top-1 of the averaged weights": metrics["ema_top1"]} if "ema_top1" in metrics else {}
        return model_card(
            "ancestry_card.md",
            name=self.config.name,
            origin=self.origin,
            data=data_name(self.config.data),
            split=self.config.validate_on,
            metrics={"top-1": metrics["top1"], **averaged},
            image=self.images.preprocessing.image_size,
            metadata=metadata,
        )


def _create(config: AncestryConfig, classes: int) -> nn.Module:
    """Create the model; the input size and stochastic depth are left out if it takes none."""
    settings = {"img_size": config.image_size, "drop_path_rate": config.drop_path, **config.model_args}
    if config.in_chans:
        settings["in_chans"] = config.in_chans
    while True:
        torch.manual_seed(config.seed)
        try:
            return create_timm(config.model, "--model", pretrained=config.pretrained, num_classes=classes, **settings)
        except TooLarge:
            raise
        except UserError as error:
            ours = settings.keys() - config.model_args.keys()
            if "drop_path_rate" in ours and "drop_path_rate" in str(error):
                del settings["drop_path_rate"]  # a model without paths to drop
                if config.drop_path and "drop_path" in config.model_fields_set:
                    log.warning(f"{config.model} has no stochastic depth: --drop-path is left out")
            elif "img_size" in ours and "img_size" in str(error):
                del settings["img_size"]  # a model of no fixed input size
            else:
                raise _with_sizes(error, config) from error


def _with_sizes(error: UserError, config: AncestryConfig) -> UserError:
    """Name the image sizes that timm takes, if it refused the model for its image size."""
    try:
        image = ImageShape.of(config.image_size or config.model_args.get("img_size")).changed(channels=config.in_chans)
    except ValueError:
        return error
    near = "" if "keyword argument" in str(error) else fitting(config.model.split(".")[0], config.model_args, image)
    return UserError(f"--model {config.model}: timm does not take images of {image.words}{near}") if near else error


def _refuse_size(config: AncestryConfig) -> None:
    """Refuse what timm does not build, or what does not run on its images, before images are read."""
    if config.pretrained or ":" in config.model or not (config.image_size or config.model_args):
        return
    with on_meta():
        sketch = _create(config.model_copy(update={"drop_path": 0.0}), classes=2)
        image = Preprocessing.of(sketch, f"--model {config.model}", size=config.image_size).image_size
    _require_fit(sketch, image, config)


def _require_fit(model: nn.Module, image: ImageShape, config: AncestryConfig) -> None:
    """Refuse a model that does not run on its images: timm builds such models."""
    cut = "patch_size" not in config.model_args and image == own_image(model, image.channels)
    found = misfit(model, image, cut=cut)
    if found is None:
        return
    settings = getattr(model, "pretrained_cfg", {})
    near = fitting(str(settings.get("architecture")), getattr(model, "_model_args", {}), image)
    reason = f": {found.reason}" if found.reason else ""
    raise UserError(f"--model {config.model}: {found.what}{near or f'{reason}; see --model-args'}")


def _match_head(module: nn.Module, classes: Sequence[str], model: str, data: str) -> None:
    """Bring the head that a model kept into the order of the images' classes; say where it has other classes."""
    named = len(getattr(module, "pretrained_cfg", {}).get("label_names") or ()) == len(classes)
    labels = labels_of(module) if named else ()
    order = order_of(labels, classes) if labels else None
    if not labels or order == [*range(len(classes))]:
        return
    layers = _classifiers(module, len(classes))
    if order is None or not layers:
        log.info(
            f"{model} has other classes than {data} by name and order ({labels[0]}, ...): its head begins with those"
        )
        return
    with torch.no_grad():
        for parameter in (parameter for layer in layers for parameter in layer.parameters()):
            parameter.copy_(parameter[order])
    log.info(f"{model} has the classes of {data} in another order: mapped by name")


def _classifiers(module: nn.Module, classes: int) -> list[nn.Module]:
    """Return the layers that give the logits, two with a distillation token; none where it is not clear."""
    found = module.get_classifier()  # type: ignore[operator]  # timm's
    layers: list[nn.Module] = []
    for head in found if isinstance(found, tuple | list | nn.ModuleList) else [found]:
        last = [
            each for each in head.modules() if isinstance(each, nn.Linear | nn.Conv2d) and len(each.weight) == classes
        ]
        if len(last) != 1:
            return []
        layers += last
    return layers


def _refuse_shared_memory(model: nn.Module, name: str) -> None:
    """Refuse weights that share memory: safetensors would refuse them after training."""
    seen: dict[int, str] = {}
    for part, tensor in model.state_dict().items():
        if tensor.numel() and (first := seen.setdefault(tensor.data_ptr(), part)) != part:
            raise UserError(
                f"--model {name}: {first} and {part} share memory, which timm's model folders cannot hold: "
                "choose another model"
            )


def train_ancestry(config: AncestryConfig, callbacks: Sequence[UserCallback] = ()) -> Manifest:
    """Train an ancestry model on labelled images and publish it in the store.

    Args:
        callbacks: Ray Train's (`ray.train.UserCallback`), which run in its controller.

    Raises:
        UserError: see the message; nothing has been trained then.
    """
    store = open_store(config, "ancestry")
    _refuse_size(config)
    sets = checked_image_sets(config)
    module = _create(config, len(sets.train.classes))
    _refuse_shared_memory(module, config.model)
    if config.pretrained:
        _match_head(module, sets.train.classes, f"--model {config.model}", f"--data {config.data}")
    preprocessing = Preprocessing.of(
        module,
        f"--model {config.model}",
        size=config.image_size,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    if config.image_size or config.model_args:
        _require_fit(module, preprocessing.image_size, config)
    images = ImagePipeline.of(sets, preprocessing, config)
    sources = [origin_of(config.model, store, module.pretrained_cfg)] if config.pretrained else []
    for source in sources:
        log_license(config.model, source)
    origin = Origin.join(sources, data=data_name(config.data), data_license=sets.license, stated=config.license)
    facts = {"data_sha256": sets.train.fingerprint}
    return run(AncestryTask(config, store, images, module, facts, origin, sets.train.classes), callbacks)
