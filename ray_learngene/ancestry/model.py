"""The ancestry model: the frozen teacher, from timm's hub, a local folder or the store."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub.utils import logging as hub_logging
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from ray_learngene.ancestry.origin import log_license, origin_of
from ray_learngene.config.image import RGB, ImageShape
from ray_learngene.errors import UserError, reason_of
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.models.architectures import no_model
from ray_learngene.models.compile import compile_layers
from ray_learngene.models.families.made import refuse_depth
from ray_learngene.models.features import Read, gives_features
from ray_learngene.models.meta import on_meta, require_memory_for
from ray_learngene.models.origin import Origin
from ray_learngene.models.preprocessing import per_channel
from ray_learngene.models.timm_folder import labels_of, load_timm
from ray_learngene.progress import counted
from ray_learngene.store.manifest import KIND_OF
from ray_learngene.store.store import Store

log = logging.getLogger(__name__)

# torch's nearest to the filters of Pillow that timm names; all others are bicubic
_RESIZES = {"bilinear": "bilinear", "hamming": "bilinear", "box": "area", "nearest": "nearest-exact"}
_LUMA = (0.299, 0.587, 0.114)  # of Pillow's mode L


class Ancestry(nn.Module):
    """A frozen ancestry model: images `[B, 3, H, W]`, or grey ones `[B, 1, H, W]`, of any size to logits `[B, K]`.

    Images are resized to the model's own input size where that is another, as the model's interpolation says. RGB
    images are made grey for a model of one channel, and grey images have three equal channels for one of three.

    Attributes:
        interpolation: timm's name of how the model's images were resized.
        origin: What its weights were made of, and their licence.
    """

    scale: Tensor | None
    shift: Tensor | None
    luma: Tensor | None
    order: Tensor | None

    def __init__(self, model: nn.Module, origin: Origin | None = None) -> None:
        super().__init__()
        self.origin = origin or Origin()
        self.model = model.eval().requires_grad_(False)
        settings = resolve_model_data_config(model)
        self.image = ImageShape.of(get_model_input_config(model)["input_size"])
        self.grey, self.input_size, self.image_size = self.image.channels == 1, self.image.sides, self.image.width
        self.mean, self.std = (_per_channel(settings[name], self.grey) for name in ("mean", "std"))
        self.interpolation = str(settings["interpolation"])
        self.classes = int(getattr(model, "num_classes", 0))
        self.labels = labels_of(model)
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self.register_buffer("order", None, persistent=False)
        self.register_buffer("luma", torch.tensor(_LUMA).view(1, 3, 1, 1) if self.grey else None, persistent=False)
        self._rounded: tuple[tuple[Any, ...], Ancestry] | None = None  # the tuple hides it from nn.Module's children

    @property
    def square(self) -> bool:
        return self.input_size[0] == self.input_size[1]

    def resizing(self, image: ImageShape) -> dict[str, str]:
        """Say how it resizes images of a shape, for names of results; empty where that was always so."""
        mode = _RESIZES.get(self.interpolation)
        return {"ancestry_resizing": mode} if mode and self.input_size != image.sides else {}

    def accept(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Accept images normalised with these per-channel statistics instead of the model's own."""
        channels = len(mean) if self.grey else RGB
        statistics = self.mean[:channels], self.std[:channels]
        if (tuple(mean), tuple(std)) == statistics:
            self.scale = self.shift = None
        else:
            given, own = (torch.tensor(each).reshape(2, -1, 1, 1) for each in ((mean, std), statistics))
            self.scale, self.shift = given[1] / own[1], (given[0] - own[0]) / own[1]
        self._rounded = None

    def reorder(self, order: Sequence[int], labels: tuple[str, ...]) -> None:
        """Answer with these of its classes, in this order, and these names."""
        self.order, self.labels, self._rounded = torch.tensor(order), labels, None

    def forward(self, images: Tensor, read: Read | None = None) -> Any:
        """Return logits `[B, K]`, or what `read` reads of the model."""
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        # a grey model's mean and deviation are one for all channels, and the weights sum to 1
        if self.luma is not None and images.shape[1] == RGB:
            images = (images * self.luma).sum(dim=1, keepdim=True)
        elif self.luma is None and images.shape[1] == 1:
            images = images.expand(-1, RGB, -1, -1)
        if images.shape[-2:] != self.input_size:
            mode = _RESIZES.get(self.interpolation, "bicubic")
            images = F.interpolate(images, self.input_size, mode=mode, antialias=mode in ("bilinear", "bicubic"))
        if read is not None:
            return read(self.model, images)
        logits = self.model(images)
        return logits if self.order is None else logits.index_select(-1, self.order)

    def ready(self, device: torch.device, *, compiled: bool, autocast: torch.dtype | None = None) -> Ancestry:
        """Return the model to run on a device: this model or, with autocast, a cached copy with rounded weights.

        Autocast rounds frozen weights again in every call. The copy rounds them once, to the same bits.
        """
        if autocast is None:
            if compiled:
                compile_layers(self)
            return self.to(device)
        key = device, compiled, autocast
        if self._rounded is None or self._rounded[0] != key:
            self.sha256()  # hash the unrounded weights, also for the copy
            rounded = copy.deepcopy(self)
            for module in rounded.model.modules():
                if type(module) in (nn.Linear, nn.Conv2d):  # a subclass may use its weights differently
                    module.to(autocast)
            # Not for training: torch folds a batch into one matrix product only if the weight requires a gradient.
            # Otherwise each image gets its own product and copy of the weight: LeViT-256 takes 1.5x as long in bf16.
            rounded.requires_grad_(True)
            self._rounded = key, rounded.ready(device, compiled=compiled)
        return self._rounded[1]

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the rounded copy from pickles and copies, which make their own."""
        return {**super().__getstate__(), "_rounded": None}

    def train(self, mode: bool = True) -> Ancestry:
        """Stay in evaluation mode, because training mode would change BatchNorm statistics and heads."""
        return super().train(False)

    def sha256(self) -> str:
        """Hash of its weights, and of the order of its classes where that is not their own."""
        if self.order is None:
            return self._sha256
        return hashlib.sha256(f"{self._sha256} {self.order.tolist()}".encode()).hexdigest()

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _per_channel(values: Sequence[float], grey: bool) -> tuple[float, ...]:
    """Return a mean or deviation for each of three channels; of a grey model, the same for all."""
    return per_channel(per_channel(values, 1), RGB) if grey else per_channel(values, RGB)


def load_ancestry(
    reference: str, store: Store, flag: str = "--ancestry", *, features: bool = False, needs_head: bool = True
) -> Ancestry:
    """Load the ancestry model of `--ancestry`, or of another flag with the same references.

    Args:
        reference: A timm name (pretrained weights from the hub), `local-dir:FOLDER`, or `store:ancestries/NAME` or
            `store:descendants/SWEEP/NAME`.
        features: It teaches features, and needs no classification head.
        needs_head: Refuse a model without a classification head.

    Raises:
        UserError: there is no such model, its weights cannot be fetched, or it cannot teach.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "store":
        folder, _, name = rest.partition("/")
        kind = KIND_OF.get(folder)
        if kind not in ("ancestry", "descendant"):
            others = ", or of a whole model store:learngenes/NAME" if flag == "--source" else ""
            raise UserError(f"{flag} {reference}: write store:ancestries/NAME or store:descendants/SWEEP/NAME{others}")
        with scratch_folder() as temporary:
            model = load_timm(store.download(kind, name, Path(temporary) / "model"))
    elif scheme == "local-dir":
        model = load_timm(Path(rest).expanduser())
    else:
        model = create_timm(reference, flag, pretrained=True)
    if features and not gives_features(model):
        raise UserError(f"{flag} {reference}: timm gives no feature maps of a {type(model).__name__}")
    if not features and needs_head and not getattr(model, "num_classes", 0):
        raise UserError(
            f"{flag} {reference}: the model has no classification head; a model of features teaches with "
            "`learngene distill --teach features`"
        )
    channels = get_model_input_config(model)["input_size"][0]
    if channels not in (1, 3):
        raise UserError(
            f"{flag} {reference}: the model takes images of {counted(channels, 'channel')}; choose one of 3, or of 1"
        )
    origin = origin_of(reference, store, model.pretrained_cfg)
    log_license(reference, origin)
    return Ancestry(model, origin)


def create_timm(name: str, flag: str, **arguments: Any) -> nn.Module:
    pretrained = arguments.get("pretrained", False)
    if name.startswith("local-dir:"):
        return load_timm(Path(name.removeprefix("local-dir:")).expanduser(), **arguments)
    on_hub = name.startswith("hf-hub:")
    try:
        if not on_hub and not timm.is_model(name.split(".")[0]):
            raise no_model(name, flag)
        if not (pretrained or on_hub):
            refuse_depth(f"{flag} {name}", arguments)
            sketch = None
            with suppress(Exception), on_meta(), torch.random.fork_rng(devices=[]):
                sketch = timm.create_model(name, **arguments)
            if sketch is not None:  # else what follows says why, or it is a model that needs values to be built
                require_memory_for(sketch, f"{flag} {name}")
            return timm.create_model(name, **arguments)
        log.info(f"weights of {name}: from the Hugging Face hub, or its cache on this machine")
        with _quiet_hub():
            return timm.create_model(name, **arguments)
    except UserError:
        raise
    except Exception as error:  # timm's of arguments that do not fit, and the hub client's many
        arguments_alone = isinstance(error, (TypeError, ValueError, AssertionError))
        if arguments_alone or not (pretrained or on_hub):
            kind = "" if arguments_alone else f"{type(error).__name__}: "
            raise UserError(f"{flag} {name}: {kind}{reason_of(error)}; see --model-args") from error
        raise UserError(f"{flag} {name}: {_not_fetched(error)}") from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's client from warning of every one of its retries: the error after them says it all."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _not_fetched(error: BaseException) -> str:
    """Return what to do about pretrained weights that the hub does not give."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    causes = [error]
    while (before := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 10:
        causes.append(before)
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError) or (isinstance(cause, HfHubHTTPError) and status == 403):
            return "the model is gated: accept its terms on the hub, and set HF_TOKEN to a token that may read it"
        if isinstance(cause, RepositoryNotFoundError) or (isinstance(cause, HfHubHTTPError) and status == 401):
            return "the hub has no such model, or it is private: check the name, or set HF_TOKEN to a token for it"
    return (
        f"the pretrained weights cannot be fetched ({type(error).__name__}): check the network and HF_HUB_OFFLINE, or "
        "put a timm model folder there by hand and name it local-dir:FOLDER"
    )
