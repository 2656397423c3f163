"""Export a timm model folder to a file that a runtime loads, compared with the model before it appears.

An export is a folder with the file and a card. `golden.npz` holds inputs with their logits, so that a device can check
itself. `export.json` holds all that is known of the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import numpy as np
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ray_learngene.config import ExportConfig
from ray_learngene.config.delivery import QuantizationConfig
from ray_learngene.config.documents import parse_object, read_document
from ray_learngene.data.image_set import Subset
from ray_learngene.delivery import onnx_file, torch_file
from ray_learngene.delivery.images import ModelImages
from ray_learngene.delivery.parity import TOLERANCE, Array, Parity, Run, compare, require_equal
from ray_learngene.errors import UserError
from ray_learngene.io.folders import EXPORT_MARK, check_free, new_folder
from ray_learngene.io.local import local_path
from ray_learngene.models.build import spec_of
from ray_learngene.models.card import export_card
from ray_learngene.models.origin import origin_of_settings
from ray_learngene.models.timm_folder import labels_of, load_timm
from ray_learngene.progress import counted
from ray_learngene.provenance import provenance, publishable
from ray_learngene.store.rows import mapping

GOLDEN, CARD = "golden.npz", "README.md"
FILES = {"onnx": "model.onnx", "int8": "model.onnx", "torch": "model.pt2"}
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "int8": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
_GOLDEN_IMAGES = 8

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ExportImages:
    """Images to compare on and to calibrate with.

    Attributes:
        name: What the card calls them.
        validation: Batches of normalised images and labels in the order of the model's head.
        training: The same of a number of training images, evenly spaced.
    """

    name: str
    validation: Callable[[], Batches]
    training: Callable[[int], Batches]


@dataclass(frozen=True)
class Exported:
    """One export that was made.

    Attributes:
        facts: What its `export.json` says.
    """

    path: Path
    facts: Mapping[str, Any]


def require_packages(formats: Iterable[str]) -> None:
    """Check that what an export needs is installed.

    Raises:
        UserError: a package is missing.
    """
    for one in formats:
        missing = [name for name in _PACKAGES[one] if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"export to {one} needs {', '.join(missing)}: pip install 'ray_learngene[export]'")


class Exporter:
    """A timm model that is traced once and exported to several formats.

    Args:
        name: What the model is called.
        images: To compare on; without them a few random images are taken, which have no labels.
        uint8_input: The files take uint8 images `[N, H, W, C]`.
        source: Where the model comes from, for the files.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        settings: QuantizationConfig,
        *,
        images: ExportImages | None = None,
        uint8_input: bool = False,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        model = model.cpu().float().eval()
        self.name, self.settings, self.images, self.uint8_input = name, settings, images, uint8_input
        self.data = resolve_model_data_config(model)
        self.origin = origin_of_settings(getattr(model, "pretrained_cfg", {}))
        self.architecture = str(getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__)
        channels, height, width = self.size = tuple(self.data["input_size"])
        self.model = onnx_file.Normalised(model, self.data["mean"], self.data["std"]).eval() if uint8_input else model
        self.classifies = bool(getattr(model, "num_classes", 0))  # else it computes features
        self.what = f"{name} ({self.architecture})"
        self.example = self._input(torch.zeros(2, channels, height, width))
        self.program = onnx_file.export_program(self.model, self.example, self.what)
        self.metadata = {
            "name": name,
            **spec_facts(model),
            "classifies": self.classifies,
            "labels": list(labels_of(model)),
            "input": {
                "name": onnx_file.INPUT,
                "dtype": "uint8" if uint8_input else "float32",
                "layout": "NHWC" if uint8_input else "NCHW",
                "size": list(self.size),
                "normalised": not uint8_input,
            },
            "preprocessing": {key: self.data[key] for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation")},
            "license": self.origin.license,
            "source": dict(source or {}),
        }

    def write(self, format: str, folder: Path) -> Exported:
        """Write one export into an empty folder.

        Raises:
            UserError: the architecture does not export, or the file does not compute what the model computes.
        """
        require_packages([format])
        path = folder / FILES[format]
        quantization = None
        where: Callable[[], str | None] = lambda: None  # noqa: E731
        metadata = {**self.metadata, "format": format, "precision": "int8" if format == "int8" else "fp32"}
        if format == "torch":
            torch_file.save(self.program, path, metadata)
            run = torch_file.torch_run(path)
        else:
            proto = onnx_file.to_onnx(self.program, self.example, self.what)
            layers = onnx_file.layer_outputs(proto)
            onnx_file.strip(proto)
            onnx_file.describe(proto, metadata)
            plain = path if format == "onnx" else folder / "fp32.onnx"
            plain.write_bytes(proto.SerializeToString())
            run = onnx_file.onnx_run(plain)
            where = lambda: onnx_file.first_layer_that_differs(self.model, proto, layers, self._golden())  # noqa: E731
        parity = self._compare(run)
        require_equal(parity, f"the {format if format != 'int8' else 'onnx'} file of {self.what}", where)
        if format == "int8":
            quantization = self._quantize(plain, path)
            plain.unlink()
            run = onnx_file.onnx_run(path)
            parity = self._compare(run)
            self._require_agreement(parity)
        golden = self._golden().numpy()
        np.savez(folder / GOLDEN, inputs=golden, logits=run(golden), timm=self._logits(torch.from_numpy(golden)))
        facts = {
            **metadata,
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            **({} if format == "torch" else {"opset": onnx_file.OPSET}),
            "quantization": quantization,
            "compared_on": self.images.name if self.images else counted(parity.images, "random image"),
            "compared": parity.as_dict(),
            "tolerance": TOLERANCE if format != "int8" else None,
            "packages": {name: version(name) for name in ("torch", "timm", *_PACKAGES[format])},
            **provenance(),
        }
        (folder / EXPORT_MARK).write_text(json.dumps(facts, indent=2) + "\n")
        (folder / CARD).write_text(export_card(self.origin, facts))
        return Exported(folder, facts)

    def _quantize(self, source: Path, target: Path) -> dict[str, Any]:
        if self.settings.int8 == "dynamic":
            onnx_file.quantize_dynamic(source, target)
            return {"kind": "dynamic"}
        if self.images is None:
            raise UserError("int8 static is calibrated on training images: give --data, or leave --int8 static out")
        count = 0

        def batches() -> Iterator[Array]:
            nonlocal count
            assert self.images is not None
            for images, _ in self.images.training(self.settings.calibration_images):
                count += len(images)
                yield self._input(images).numpy()

        onnx_file.quantize_static(source, target, batches())
        return {"kind": "static", "calibration_images": count}

    def _require_agreement(self, parity: Parity) -> None:
        if self.images is not None and parity.agreement < self.settings.min_agreement:
            of, so_much = counted(parity.images, "validation image"), f"{parity.agreement:.2f} %"
            decided = f"decides as the timm model on {so_much} of {of}"
            similar = f"has features with a cosine similarity of {so_much} to the timm model's on {of}"
            raise UserError(
                f"the int8 file of {self.what} {decided if self.classifies else similar}, less than --min-agreement "
                f"{self.settings.min_agreement:g}: export with --int8 static, or lower it; nothing was written"
            )

    def _compare(self, run: Run) -> Parity:
        def pairs() -> Iterator[tuple[Array, Array, Array | None]]:
            if self.images is None:
                given = self._golden()
                yield run(given.numpy()), self._logits(given), None
                return
            for images, labels in self.images.validation():
                given = self._input(images)
                yield run(given.numpy()), self._logits(given), labels.numpy() if self.classifies else None

        return compare(pairs(), classifies=self.classifies)

    @torch.no_grad()
    def _logits(self, given: Tensor) -> Array:
        logits: Array = self.model(given).numpy()
        return logits

    def _input(self, images: Tensor) -> Tensor:
        """Return normalised images `[N, C, H, W]` as the file takes them; their pixels were whole numbers."""
        if not self.uint8_input:
            return images.contiguous()
        mean, std = (torch.tensor(self.data[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        pixels = ((images * std + mean) * 255).round().clamp(0, 255)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def _golden(self) -> Tensor:
        """Return a few validation images, or random pixels."""
        if self.images is not None:
            images, _ = next(iter(self.images.validation()))
            return self._input(images[:_GOLDEN_IMAGES])
        channels, height, width = self.size
        pixels = torch.from_numpy(
            np.random.default_rng(0).random((_GOLDEN_IMAGES, channels, height, width), np.float32)
        )
        mean, std = (torch.tensor(self.data[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        return self._input((pixels - mean) / std)


def spec_facts(model: nn.Module) -> dict[str, Any]:
    """Architecture, parameters and spec of a timm model; the spec is None where there is none for its architecture."""
    spec = None
    with suppress(UserError):
        spec = spec_of(model).model_dump(mode="json")
    return {
        "architecture": str(getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "spec": spec,
    }


def export(config: ExportConfig) -> list[Exported]:
    """Export a model folder to one or several formats, which appear when all are whole and compared.

    Raises:
        UserError: a package is missing, the folder is no timm folder, its architecture does not export, or the logits
            of a file differ from the model's.
    """
    require_packages(config.format)
    folder = local_path(config.model, "--model")
    outs = {format: local_path(out) for format, out in config.outs.items()}
    for path in outs.values():
        check_free(path, config.overwrite, EXPORT_MARK)
    model = load_timm(folder)
    images = _images_of(ModelImages.open(model, config.model, config), config) if config.data else None
    exporter = Exporter(
        model, folder.name, config, images=images, uint8_input=config.uint8_input, source=_source(folder)
    )
    made = []
    with ExitStack() as folders:
        for format, path in outs.items():
            new = folders.enter_context(new_folder(path, config.overwrite, EXPORT_MARK))
            made.append(Exported(path, exporter.write(format, new).facts))
    return made


def _images_of(images: ModelImages, config: ExportConfig) -> ExportImages:
    def training(count: int) -> Batches:
        return images.batches(Subset(images.train, spaced(len(images.train), count)), config.batch_size)

    name = f"{counted(len(images.val), 'validation image')} of {publishable(config.data)}"
    return ExportImages(name, lambda: images.batches(images.val, config.batch_size), training)


def spaced(length: int, count: int) -> Array:
    """Return the indices of at most `count` images, evenly spaced over `length`."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def _source(folder: Path) -> dict[str, Any]:
    """Return where a model folder comes from, as far as its `metrics.json` says, and a hash of its weights."""
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    metrics, facts = folder / "metrics.json", mapping(None)
    if metrics.is_file():  # no pipe, no device
        with suppress(OSError, ValueError):
            facts = parse_object(read_document(metrics))
    facts = mapping(facts.get("row", facts))
    kept = ("descendant", "sweep", "learngene", "learngene_version", "top1", "top1_untuned")
    known = {name: facts[name] for name in kept if isinstance(facts.get(name), str | int | float)}
    return {**known, "weights_sha256": weights}
