"""An ONNX file of a timm model: opset 20, any batch, no trace of the machine that made it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ray_learngene.delivery.parity import Array, Run
from ray_learngene.errors import UserError

OPSET = 20
MOST_IMAGES = 1024  # in a batch
MOST_BYTES = 2 * 10**9  # of weights: a file with its graph has 2 GiB at most
INPUT, OUTPUT = "images", "logits"
METADATA = "learngene"  # key of the JSON text in an ONNX file
_LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm)
_QUANTIZED = ["MatMul", "Gemm"]


class Normalised(nn.Module):
    """A model that takes uint8 images `[N, H, W, C]` and normalises them itself."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Buffer(1 / (255 * torch.tensor(std)).view(1, -1, 1, 1))
        self.shift = nn.Buffer(-(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.model(images.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        return result


def export_program(model: nn.Module, example: Tensor, name: str) -> ExportedProgram:
    """Trace a model for any batch up to MOST_IMAGES.

    Raises:
        UserError: its architecture cannot be exported.
    """
    try:
        with torch.no_grad(), _quiet():
            batch = Dim("batch", min=1, max=MOST_IMAGES)
            return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises errors of many kinds
        raise _not_exported(name, "torch.export", error) from error


def to_onnx(program: ExportedProgram, example: Tensor, name: str) -> Any:
    """Convert a traced model to an ONNX model.

    Raises:
        UserError: an operator of the architecture has no counterpart, or the weights do not fit into a file.
    """
    weights = sum(one.nbytes for one in program.state_dict.values())
    if weights > MOST_BYTES:
        raise UserError(
            f"{name} has {weights / 1e9:.1f} GB of weights, and an ONNX file holds {MOST_BYTES / 1e9:g}: "
            "export to torch, or a smaller size; nothing was written"
        )
    try:
        with torch.no_grad(), _quiet():
            made = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            proto = made.model_proto  # type: ignore[union-attr]
    except Exception as error:  # likewise
        raise _not_exported(name, f"ONNX opset {OPSET}", error) from error
    found = {one.domain: one.version for one in proto.opset_import}.get("")
    if found != OPSET:  # the exporter falls back to another one without saying so
        raise UserError(f"{name} does not export to ONNX opset {OPSET}: the exporter made opset {found}")
    return proto


def _not_exported(name: str, target: str, error: Exception) -> UserError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(f"{name} does not export to {target}: {reason[:200]}; nothing was written")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters and quantizers from printing; what matters comes back as an error."""
    before, silent = logging.root.manager.disable, logging.NullHandler()
    logging.disable(logging.WARNING)
    logging.root.addHandler(
        silent
    )  # without one, a library's logging.warning() adds one that prints our messages again
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeHandler(silent)
        logging.disable(before)


def layer_outputs(proto: Any) -> dict[str, str]:
    """Return the value in the graph that each layer of the timm model computes; to be asked before `strip`."""
    found: dict[str, str] = {}
    for node in proto.graph.node:
        scopes = next((one.value for one in node.metadata_props if one.key == "pkg.torch.onnx.name_scopes"), "[]")
        try:
            names = json.loads(scopes.replace("'", '"'))
        except ValueError:
            continue
        for name in names:
            if name:
                found[name] = node.output[0]
    return found


def strip(proto: Any) -> None:
    """Remove what the exporter notes of the machine: stack traces with paths, names of modules."""
    for part in (proto, proto.graph, *proto.functions):
        part.doc_string = ""
        del part.metadata_props[:]
    graph = proto.graph
    for one in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        one.doc_string = ""
        del one.metadata_props[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for one in (*graph.value_info, *graph.input, *graph.output):
        for dim in one.type.tensor_type.shape.dim:
            if dim.dim_param:  # the exporter's name of the batch, or a multiple of it, such as windows of all images
                dim.dim_param = re.sub(rf"\b{re.escape(batch)}\b", "batch", dim.dim_param)


def describe(proto: Any, facts: Mapping[str, Any]) -> None:
    """Put facts about the model into an ONNX file, where every runtime finds them."""
    import onnx

    onnx.helper.set_model_props(proto, {METADATA: json.dumps(facts)})


def quantize_dynamic(source: Path, target: Path) -> None:
    """Quantize matrix products to int8; activations are scaled for every image."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with _quiet():
        quantize(source, target, op_types_to_quantize=_QUANTIZED, weight_type=QuantType.QInt8)


def quantize_static(source: Path, target: Path, batches: Iterator[Array]) -> None:
    """Quantize products with constant weights and convolutions to int8, scaled as on these images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Array] | None:
            images = next(batches, None)
            return None if images is None else {INPUT: images}

    with _quiet():
        quantize(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_QUANTIZED, "Conv"],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )


def session(model: Path | bytes) -> Any:
    """Return an onnxruntime session on the CPU, with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_run(model: Path | bytes) -> Run:
    """Return the logits of an ONNX file on onnxruntime."""
    opened = session(model)

    def run(images: Array) -> Array:
        logits: Array = opened.run([OUTPUT], {INPUT: images})[0]
        return logits

    return run


@torch.no_grad()
def first_layer_that_differs(model: nn.Module, proto: Any, layers: Mapping[str, str], images: Tensor) -> str | None:
    """Return the first layer whose output in the ONNX file is not the timm model's.

    None if no layer can be compared.
    """
    import onnx

    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS) and name in layers
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    probed = onnx.ModelProto()
    probed.CopyFrom(proto)
    known = {one.name for one in probed.graph.output}
    wanted = [value for name in outputs if (value := layers[name]) not in known]
    probed.graph.output.extend(onnx.ValueInfoProto(name=value) for value in dict.fromkeys(wanted))
    opened = session(probed.SerializeToString())
    found = dict(
        zip([one.name for one in opened.get_outputs()], opened.run(None, {INPUT: images.numpy()}), strict=True)
    )
    for name, output in outputs.items():  # in the order of the forward pass
        value = found[layers[name]]
        if value.shape != tuple(output.shape):
            continue
        expected = output.numpy()
        scale = max(1.0, float(abs(expected).max()))
        if not abs(value - expected).max() <= 1e-4 * scale:
            return name
    return None
