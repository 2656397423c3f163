"""Latencies of a device: records that `measure.py` made there, kept in the store, and what they predict of other sizes.

A record belongs to one device, runtime, precision, number of threads and batch. Latencies of different ones are never
mixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError, model_validator

from ray_learngene.config.documents import first_error
from ray_learngene.config.image import Shape
from ray_learngene.errors import UserError
from ray_learngene.io.scratch import scratch_folder
from ray_learngene.progress import counted
from ray_learngene.store.latency_model import LatencyModel
from ray_learngene.store.manifest import MANIFEST, NAME, Manifest, folder_of
from ray_learngene.store.store import Store

RECORD = "record.json"
Text = Annotated[str, StringConstraints(max_length=200)]
Count = Annotated[int, Field(ge=1, le=10**6)]


class TimedSpec(BaseModel):
    """The size of a model that was timed, as far as it decides how long the model takes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    width: Count
    depth: Count
    heads: Count
    image: Shape
    patch: Count
    architecture: str | None = None
    depths: tuple[Count, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_row(cls, values: Any) -> Any:
        """Return a row of a results table holds the depths of stages as `3-3-9-3`."""
        if isinstance(values, dict) and isinstance(stages := values.get("stages"), str) and "depths" not in values:
            return {**values, "depths": stages.split("-")}
        return values

    @property
    def kind(self) -> dict[str, Any]:
        """What sizes must have in common for one of them to tell of another."""
        architecture = {"architecture": self.architecture} if self.architecture else {}
        stages = {"stages": len(self.depths)} if self.depths else {}
        head_size = self.width // self.heads
        return {**architecture, "image": self.image.plain, "patch": self.patch, "head size": head_size, **stages}


class TimedSize(BaseModel):
    """One model of a record."""

    model_config = ConfigDict(extra="allow")

    name: Text
    latency_ms: FiniteFloat = Field(gt=0)
    p90_ms: FiniteFloat = Field(gt=0)
    spec: TimedSpec | None = None
    agreed: bool = True
    spread: FiniteFloat = Field(0.0, ge=0)


class Device(BaseModel):
    """What a record says of its device."""

    model_config = ConfigDict(extra="allow")

    name: Text


class Record(BaseModel):
    """One measurement, as `measure.py` writes it."""

    model_config = ConfigDict(extra="allow")

    format: int = Field(ge=1, le=1)
    device: Device
    runtime: Text
    provider: Text = ""
    precision: Text
    threads: Count
    batch: Count
    clock: Text
    busy: bool = False
    sizes: list[TimedSize] = Field(min_length=1, max_length=10_000)

    @property
    def conditions(self) -> str:
        """What decides the latency besides device and model, as a name in a store."""
        runtime = self.runtime.split(" ")[0]
        gpu = (
            ""
            if self.provider in ("", "CPUExecutionProvider")
            else f"-{self.provider.removesuffix('ExecutionProvider')}"
        )
        return f"{runtime}{gpu}-{self.precision}-t{self.threads}-b{self.batch}".lower()

    @property
    def text(self) -> str:
        """The conditions in a few words."""
        return f"{self.runtime}, {self.precision}, {counted(self.threads, 'thread')}, batch {self.batch}"

    def name(self, device: str | None = None) -> str:
        """Its name in a store: device and conditions, with what tells architectures apart."""
        spec = next((one.spec for one in self.sizes if one.spec), None)
        kind = "".join(f"-{word[0]}{value}" for word, value in spec.kind.items()) if spec else ""
        return f"{device or self.device.name}/{self.conditions}{kind}"


class _File(BaseModel):
    """What `measure.py` writes."""

    records: list[Record] = Field(min_length=1)


def read_records(text: str, where: str) -> list[Record]:
    """Return the records of a file that `measure.py` wrote.

    Raises:
        UserError: it is something else.
    """
    try:
        return _File.model_validate(json.loads(text)).records
    except ValidationError as error:
        raise UserError(f"{where} is not a record of measure.py: {first_error(error)}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not a record of measure.py: write one with `python measure.py --out`") from None


def record_of(manifest: Manifest) -> Record:
    """Return the record of an artefact.

    Raises:
        UserError: it is damaged.
    """
    try:
        return Record.model_validate(manifest.metadata["record"])
    except (ValidationError, KeyError, OverflowError):
        raise UserError(f"timings/{manifest.name} is damaged: import it again with --overwrite") from None


def check_device(device: str) -> None:
    """Check the name of a device.

    Raises:
        UserError: it is none that a store can hold.
    """
    if not NAME.fullmatch(device):
        raise UserError(f"--device {device}: use letters, digits, '.', '_' and '-'")


def check_name(store: Store, name: str, overwrite: bool) -> None:
    """Refuse the name of a record before anything is measured or published.

    Raises:
        UserError: the device's name is none that a store can hold, or there is such a record and it stays.
    """
    check_device(name.partition("/")[0])
    if not overwrite and store.has(f"{folder_of('timing', name)}/{MANIFEST}"):
        raise UserError(f"{store.uri} has timings/{name}: choose another --device, or --overwrite")


def publish_record(store: Store, record: Record, device: str | None, overwrite: bool) -> Manifest:
    """Publish a record as `timings/DEVICE/CONDITIONS`.

    Raises:
        UserError: there is such a record and it stays.
    """
    facts = record.model_dump(mode="json")
    with scratch_folder() as folder:
        (folder / RECORD).write_text(json.dumps(facts, indent=2) + "\n")
        return store.publish("timing", record.name(device), folder, {"record": facts}, overwrite=overwrite)


@dataclass(frozen=True)
class Timing:
    """The latency of a size.

    Attributes:
        error: Relative error of a prediction; 0 for a measurement.
    """

    milliseconds: float
    error: float

    def __str__(self) -> str:
        if not self.error:
            return f"{self.milliseconds:.3g} ms, measured"
        return f"{self.milliseconds:.3g} ms, predicted (± {100 * self.error:.1f} %)"


@dataclass(frozen=True)
class Timings:
    """The latencies of one device under one set of conditions.

    Attributes:
        device: As the user names it.
        records: One for each architecture.
    """

    device: str
    records: tuple[Record, ...]

    @classmethod
    def load(cls, store: Store, device: str) -> Timings:
        """Read the records of `DEVICE`, or of `DEVICE/CONDITIONS` where it was measured under several.

        Raises:
            UserError: there is none, there are several conditions, or a record is damaged.
        """
        name, _, conditions = device.partition("/")
        found: dict[str, list[Record]] = {}
        for manifest in store.manifests("timing", name):
            record = record_of(manifest)
            if record.conditions.startswith(conditions):
                found.setdefault(record.conditions, []).append(record)
        found = {conditions: found[conditions]} if conditions in found else found  # batch 1 begins batch 16
        if not found:
            devices = ", ".join(sorted({one.name.partition("/")[0] for one in store.manifests("timing")})) or "none"
            raise UserError(
                f"{store.uri} holds no latencies of the device {device!r} (devices: {devices}): run measure.py on it, "
                "then `learngene measure --import FILE`"
            )
        if len(found) > 1:
            several = ", ".join(f"{name}/{one}" for one in sorted(found))
            raise UserError(f"the device {name!r} was measured in several ways: choose one of {several}")
        return cls(device, tuple(next(iter(found.values()))))

    @property
    def text(self) -> str:
        """The conditions in a few words."""
        return self.records[0].text

    @property
    def measured(self) -> int:
        """How many sizes were measured."""
        return len(self._known)

    @classmethod
    def has(cls, store: Store, device: str) -> bool:
        """Return whether a store holds a record of a device."""
        return bool(store.manifests("timing", device.partition("/")[0]))

    @cached_property
    def _models(self) -> dict[tuple[str, int], LatencyModel | None]:
        return {}

    @cached_property
    def _spreads(self) -> dict[TimedSpec, float]:
        return {one.spec: one.spread for record in self.records for one in record.sizes if one.spec}

    @cached_property
    def _known(self) -> dict[TimedSpec, float]:
        return {one.spec: one.latency_ms for record in self.records for one in record.sizes if one.spec}

    def of(self, size: Any) -> Timing:
        """Return the latency of a spec, or of a row of a results table: measured, or predicted from other sizes.

        Raises:
            UserError: the record is of another architecture, or of too few sizes to predict from.
        """
        fields = size if isinstance(size, Mapping) else size.model_dump()
        try:
            spec = TimedSpec.model_validate(dict(fields))
        except ValidationError:
            raise UserError(f"the latencies of {self.device} say nothing about this architecture") from None
        if spec in self._known:
            return Timing(self._known[spec], 0.0)
        alike = {one: value for one, value in self._known.items() if one.kind == spec.kind}
        if not alike:
            measured = next((_text(one.kind) for one in self._known), "no size")
            raise UserError(
                f"the latencies of {self.device} are of another model: {measured}, not {_text(spec.kind)}: measure "
                "this one there"
            )
        return self._predicted(alike, spec)

    def _predicted(self, known: Mapping[TimedSpec, float], spec: TimedSpec) -> Timing:
        model = self._model(known, spec)
        if model is None:
            wanted = (
                f"measure {len(spec.depths) + 2} sizes of its width that differ in every stage"
                if spec.depths
                else "measure three depths of its width, or four sizes of several widths and depths"
            )
            few = f"{counted(len(known), 'size')} on {self.device} {'is' if len(known) == 1 else 'are'} too few"
            raise UserError(f"{few} to predict width {spec.width}, depth {spec.depth}: {wanted}")
        return Timing(*model.predict(spec))

    def _model(self, known: Mapping[TimedSpec, float], spec: TimedSpec) -> LatencyModel | None:
        """Fitted to the sizes of its width where they are enough, else to those of all widths."""
        key = _text(spec.kind), spec.width
        if key not in self._models:
            line = {one: value for one, value in known.items() if one.width == spec.width}
            spreads = [self._spreads[one] for one in known]
            spread = max(spreads) - min(spreads)  # what all share is the machine's drift
            found = LatencyModel.fit(list(line), list(line.values()), spread, across_widths=False)
            if found is None and spec.depths is None:
                found = LatencyModel.fit(list(known), list(known.values()), spread, across_widths=True)
            self._models[key] = found
        return self._models[key]


def _text(kind: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in kind.items())
