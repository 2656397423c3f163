"""Time models on the device at hand, by the procedure of measure.py."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray_learngene.models.timm_import  # noqa: F401  isort:skip  (before the first timm import)
import torch
from timm.data import resolve_model_data_config
from torch import nn

from ray_learngene.config import MeasureConfig
from ray_learngene.config.delivery import QuantizationConfig
from ray_learngene.config.numbers import parse_numbers
from ray_learngene.delivery import measure as clock
from ray_learngene.delivery.expand import Expander
from ray_learngene.delivery.export import Exporter, require_packages, spec_facts
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.models.device import resolve_device
from ray_learngene.models.sizes import size_name
from ray_learngene.models.specs import Spec
from ray_learngene.models.timm_folder import load_timm
from ray_learngene.progress import Progress
from ray_learngene.store.store import Store
from ray_learngene.store.timings import Record, check_name

Named = tuple[str, nn.Module, dict[str, Any]]  # a model with its name and its source
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure(config: MeasureConfig, store: Store) -> list[Record]:
    """Time the models or sizes of a configuration; records are neither written nor published.

    Raises:
        UserError: a model cannot be timed, or computes something else than its golden file.
    """
    if config.runtime == "onnxruntime":
        require_packages(["onnx"])
    begun = time.monotonic()
    sized = _Sized.of(config, store) if config.learngene else None
    with tempfile.TemporaryDirectory(prefix="learngene-measure-") as scratch:
        if config.runtime == "torch":
            return [_time_torch(_models(config, sized, Path(scratch)), config)]
        paths = list(_onnx_paths(config, sized, Path(scratch)))
        try:
            found = clock.measure(
                paths,
                device=config.device,
                threads=config.threads,
                batch=config.batch,
                seconds=max(config.seconds / 3, config.seconds - (time.monotonic() - begun)),
            )
        except clock.Failed as error:
            raise UserError(str(error)) from None
    return [Record.model_validate(one) for one in found]


@dataclass(frozen=True)
class _Sized:
    """A learngene, and those of its sizes that are timed."""

    expander: Expander
    specs: Sequence[Spec]

    @classmethod
    def of(cls, config: MeasureConfig, store: Store) -> _Sized:
        """Open a learngene, and refuse a record that could not be published, before anything is exported or timed."""
        expander = Expander.open(store, str(config.learngene))
        specs = sizes_to_time(expander, config.depths, config.widths)
        if not config.out:
            gpu = config.runtime == "torch" and resolve_device().type == "cuda"
            here = clock.record(
                {"": {"latency_ms": 1.0, "p90_ms": 1.0, "wall_over_cpu": 1.0}},
                {"": {"spec": specs[0].model_dump(mode="json")}},
                **_conditions(config, gpu),
                runtime=config.runtime,
                before=(),
                started="",
            )
            check_name(store, Record.model_validate(here).name(config.device), config.overwrite)
        return cls(expander, specs)


def _conditions(config: MeasureConfig, gpu: bool) -> dict[str, Any]:
    """What decides a latency besides the model, as a record of eager torch states it."""
    return {
        "device": config.device,
        "provider": "CUDA" if gpu else "",
        "precision": config.precision,
        "threads": config.threads,
        "batch": config.batch,
        "clock": clock.clock_of(config.threads, gpu),
        "gpu": gpu,
    }


def write_script(path: Path) -> None:
    """Write measure.py to a file.

    Raises:
        UserError: the disk refuses.
    """
    with clear_errors(str(path)):
        shutil.copyfile(clock.__file__, path)


def sizes_to_time(expander: Expander, depths: str | None, widths: str | None) -> list[Spec]:
    """Return the sizes from which all others are predicted.

    Of one width three depths, of several the smallest and the largest at two depths each, and all others at a depth
    in the middle, which tells the error; of two widths the larger one. Of an architecture of several stages each stage
    is grown alone, and all together. Depths that are named are all timed at the largest width, and the others at the
    last of them.
    """
    source = expander.stored.learngene.spec
    many = sorted(
        parse_numbers("widths", widths) if widths else expander.method.trained_widths(expander.stored.learngene)
    )
    if source.depths and not depths:
        lowest = [min(2, depth) for depth in source.depths]
        grown = [[*lowest[:stage], depth, *lowest[stage + 1 :]] for stage, depth in enumerate(source.depths)]
        each = dict.fromkeys(tuple(one) for one in (lowest, *grown, source.depths))
        depths = ",".join("-".join(map(str, one)) for one in each)
    least, middle = min(2, source.depth), round((min(2, source.depth) + source.depth) / 2)
    if depths or len(many) < 2:
        found = expander.sizes(depths or ",".join(map(str, sorted({least, middle, source.depth}))), str(many[-1]))
        rest = ",".join(map(str, many[:-1]))
        return [*found, *expander.sizes(str(found[-1].depth), rest)] if rest else found
    ends = f"{many[0]},{many[-1]}"
    found = expander.sizes(",".join(map(str, sorted({least, source.depth}))), ends)
    between = many[1:-1] or many[-1:]
    return [*found, *expander.sizes(str(middle), ",".join(map(str, between)))]


def _models(config: MeasureConfig, sized: _Sized | None, scratch: Path) -> Iterator[Named]:
    """Yield the models with their names and sources, one at a time."""
    if sized:
        expander = sized.expander
        for spec in sized.specs:
            source = {"learngene": expander.name, "learngene_version": expander.stored.manifest.version}
            made = expander.write(spec, scratch / f"{size_name(spec)}-timm")
            yield f"{expander.name}-{size_name(spec)}", load_timm(made.path), source
    names = [Path(text).expanduser().resolve().name for text in config.models]
    for text, name in zip(config.models, names, strict=True):
        yield name if names.count(name) == 1 else text, load_timm(Path(text).expanduser()), {}


def _onnx_paths(config: MeasureConfig, sized: _Sized | None, scratch: Path) -> Iterator[str]:
    """ONNX files and folders of exports as they are; timm folders and sizes are exported first."""
    ready = [text for text in config.models if not (Path(text).expanduser() / "config.json").is_file()]
    yield from ready
    rest = config.model_copy(update={"models": tuple(text for text in config.models if text not in ready)})
    format = "int8" if config.precision == "int8" else "onnx"
    with Progress("export models to time", 0, "models") as progress:
        for number, (name, model, source) in enumerate(_models(rest, sized, scratch)):
            folder = scratch / f"{number}-onnx"
            folder.mkdir()
            Exporter(model, name, QuantizationConfig(), source=source).write(format, folder)
            progress.advance()
            yield str(folder)


def _time_torch(models: Iterator[Named], config: MeasureConfig) -> Record:
    """Time eager torch on the device at hand; on a GPU in wall time, with all work waited for."""
    device, dtype = resolve_device(), _DTYPES[config.precision]
    gpu = device.type == "cuda"
    conditions = _conditions(config, gpu)
    runs, known = {}, {}
    for name, model, source in models:
        model = model.eval()
        known[name] = {**spec_facts(model), "source": source}
        size = resolve_model_data_config(model)["input_size"]
        try:
            images = torch.rand(config.batch, *size, device=device, dtype=dtype)
            runs[name] = partial(model.to(device=device, dtype=dtype), images)
            with torch.inference_mode():
                runs[name]()
        except RuntimeError as error:  # it does not fit, or no kernel has this type
            raise UserError(clock.not_run(name, config.batch, error)) from None
    before, started = clock.load(), datetime.now(UTC).isoformat(timespec="seconds")
    with torch.inference_mode(), _threads(config.threads, pinned=not gpu):
        timed = clock.time_all(runs, config.seconds, conditions["clock"], torch.cuda.synchronize if gpu else None)
    found = clock.record(
        timed,
        known,
        **conditions,
        runtime=f"torch {torch.__version__}",
        before=before,
        started=started,
    )
    if gpu and not found["device"].get("gpu"):
        found["device"]["gpu"] = torch.cuda.get_device_name(device)
    return Record.model_validate(found)


@contextmanager
def _threads(count: int, *, pinned: bool) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with clock.pinned(count) if pinned else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)


def record_lines(records: Sequence[Record]) -> list[str]:
    """Return the records as lines for a terminal."""
    return [line for record in records for line in clock.lines(record.model_dump(mode="json"))]
