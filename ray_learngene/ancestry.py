"""The ancestry model: loaded from wherever it is, or trained where nobody has one."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray_learngene.torchvision_cpu  # noqa: F401  isort:skip  (before the first timm import)
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from ray_learngene.cluster_training import check_early, run
from ray_learngene.config import AncestryConfig
from ray_learngene.data.images import Images, Preprocessing, checked_image_sets
from ray_learngene.engine import LabelObjective, Objective
from ray_learngene.errors import UserError
from ray_learngene.export import export_timm, labels_of, load_timm
from ray_learngene.manifest import Kind, Manifest
from ray_learngene.store import Store

_STORED = {"ancestries": "ancestry", "descendants": "descendant"}


class Ancestry(nn.Module):
    """A frozen ancestry model: images `[B, 3, H, W]` of any size to logits `[B, K]`.

    Images are resized to the model's own input size where that is another.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        settings = resolve_model_data_config(model)
        self.image_size = int(get_model_input_config(model)["input_size"][-1])
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self.classes = int(getattr(model, "num_classes", 0))
        self.labels = labels_of(model)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return self.model(images)

    def train(self, mode: bool = True) -> Ancestry:
        """Stays in evaluation mode: its BatchNorm statistics and its heads belong to it."""
        return super().train(False)

    def sha256(self) -> str:
        """Hash of its weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_ancestry(reference: str, store: Store) -> Ancestry:
    """The ancestry model behind `--ancestry`.

    Args:
        reference: A timm name (pretrained weights from the hub), `local-dir:FOLDER`, or `store:ancestries/NAME` or
            `store:descendants/SWEEP/NAME`.

    Raises:
        UserError: there is no such model, its weights cannot be had, or it has no classification head.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "store":
        folder, _, name = rest.partition("/")
        if folder not in _STORED:
            raise UserError(f"--ancestry {reference}: write store:ancestries/NAME or store:descendants/SWEEP/NAME")
        kind: Kind = _STORED[folder]  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as temporary:
            model = load_timm(store.download(kind, name, Path(temporary) / "model"))
    elif scheme == "local-dir":
        model = load_timm(Path(rest).expanduser())
    else:
        model = _create(reference, "--ancestry", pretrained=True)
    if not getattr(model, "num_classes", 0):
        raise UserError(f"--ancestry {reference}: the model has no classification head")
    return Ancestry(model)


def _create(name: str, flag: str, **arguments: Any) -> nn.Module:
    pretrained = arguments.get("pretrained", False)
    try:
        if not timm.is_model(name.removeprefix("hf-hub:").split(".")[0]) and not name.startswith("hf-hub:"):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
            raise UserError(
                f"{flag} {name}: timm has no such model" + (f"; there is {', '.join(near)}" if near else "")
            )
        return timm.create_model(name, **arguments)
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{flag} {name}: {' '.join(str(error).split())[:300]}; see --model-args") from error
    except Exception as error:  # the hub client's many errors
        if not pretrained:
            raise
        raise UserError(
            f"{flag} {name}: the pretrained weights cannot be fetched ({type(error).__name__}): check the network and "
            "HF_HUB_OFFLINE, or put a timm model folder there by hand and name it local-dir:FOLDER"
        ) from error


@dataclass
class AncestryTask:
    """Cross-entropy training of any timm model."""

    config: AncestryConfig
    images: Images
    module: nn.Module
    labels: tuple[str, ...]
    facts: dict[str, Any]
    kind: Kind = field(default="ancestry", init=False)

    def objective(self, device: torch.device, autocast: torch.dtype | None) -> Objective:
        return LabelObjective(self.config.smoothing)

    def judge(self, device: torch.device) -> nn.Module | None:
        return None

    def identity(self) -> dict[str, Any]:
        return self.facts

    def write(self, module: nn.Module, folder: Path) -> dict[str, Any]:
        export_timm(module, folder, labels=self.labels, preprocessing=self.images.preprocessing)
        return {
            "model": self.config.model,
            "model_args": self.config.model_args,
            "labels": list(self.labels),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }


def train_ancestry(config: AncestryConfig) -> Manifest:
    """Train an ancestry model on labelled images and publish it in the store.

    Raises:
        UserError: see the message; nothing has been trained then.
    """
    check_early(config, "ancestry")
    sets = checked_image_sets(config)
    arguments = {"img_size": config.image_size} if config.image_size and "img_size" not in config.model_args else {}
    options: dict[str, Any] = {
        "pretrained": config.pretrained,
        "num_classes": len(sets.train.classes),
        "drop_path_rate": config.drop_path,
        **config.model_args,
    }
    torch.manual_seed(config.seed)
    try:
        module = _create(config.model, "--model", **options, **arguments)
    except UserError:
        if not arguments:
            raise
        module = _create(config.model, "--model", **options)  # a model of no fixed input size
    data = resolve_model_data_config(module)
    preprocessing = Preprocessing(
        image_size=config.image_size or int(get_model_input_config(module)["input_size"][-1]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    images = Images(sets.train, sets.val, preprocessing, config, config.loader_workers)
    return run(AncestryTask(config, images, module, sets.train.classes, {"data_sha256": sets.train.fingerprint}))
