"""`learngene pull`: the most accurate descendant within limits, or an artefact by name, verified."""

from __future__ import annotations

import logging
from pathlib import Path

from ray_learngene.cli.choose import LIMITED, device_timings, no_record, select_descendant
from ray_learngene.config import PullConfig
from ray_learngene.config.delivery import EXPORT_FORMATS
from ray_learngene.errors import NothingWithin, UserError
from ray_learngene.io.errors import Denied
from ray_learngene.io.folders import MODEL_MARK, check_free
from ray_learngene.io.local import local_path
from ray_learngene.models.budgets import format_quantity
from ray_learngene.store.manifest import FOLDERS, KIND_OF, Manifest, parse_artefact
from ray_learngene.store.rows import measured_on, numbers_of
from ray_learngene.store.store import Entry, Store
from ray_learngene.terminal import one_line

log = logging.getLogger(__name__)


def pull(config: PullConfig) -> Path:
    """Bring an artefact to a local folder, every file verified against its hash; or expand a learngene to it.

    Returns:
        The folder. Of a descendant, an ancestry or an expansion it is a timm model folder.

    Raises:
        UserError: see the message; the folder is then as it was.
    """
    store = Store.of(config)
    store.check(write=False)
    if config.artefact:
        return _download(config, store, _named(config, config.artefact, store))
    if config.learngene:
        chosen = _trained_or_expanded(config, store)
        return chosen if isinstance(chosen, Path) else _download(config, store, chosen)
    if config.expand:
        raise UserError("--expand needs --learngene NAME: there is no other way to know which one")
    return _download(config, store, select_descendant(config, store))


def _named(config: PullConfig, artefact: str, store: Store) -> Manifest:
    if config.limits or config.sweep or config.arm or config.data or config.learngene or config.expand:
        raise UserError(
            f"pull {artefact}: a named artefact takes no limits and no --expand; leave out the name or them"
        )
    folder, name = parse_artefact(artefact)
    if folder == "softlabels":
        raise UserError("soft labels are not pulled: `learngene distill --soft-labels` reads them from the store")
    if folder == "sweeps":
        raise UserError("a sweep is not pulled whole: pull one of its descendants, or read its results.parquet")
    return store.manifest(KIND_OF[folder], name)


def _download(config: PullConfig, store: Store, manifest: Manifest) -> Path:
    others = EXPORT_FORMATS if manifest.kind == "descendant" and not config.format else ()
    fetched = manifest.below(config.format) if config.format else manifest.without(others)
    if fetched is None and manifest.kind == "learngene":
        raise UserError(
            f"learngenes/{manifest.name} is no model to export: `learngene expand {manifest.name}` makes one, then "
            f"`learngene export FOLDER --format {config.format}`"
        )
    if fetched is None:
        raise UserError(
            f"{FOLDERS[manifest.kind]}/{manifest.name} was published without {config.format}: pull it without --format "
            f"and run `learngene export FOLDER --format {config.format}`"
        )
    name = manifest.name.split("/")[-1]
    out = Path(config.out or (f"{name}-{config.format}" if config.format else name))
    path = store.download(manifest.kind, manifest.name, out, config.overwrite, config.format, others)
    what = f"{config.format} of " if config.format else ""
    size = format_quantity("memory", fetched.bytes)
    log.info(f"pulled {what}{FOLDERS[manifest.kind]}/{manifest.name} ({size}) to {path}")
    _tell(manifest, config, store)
    return path


def _tell(manifest: Manifest, config: PullConfig, store: Store) -> None:
    """Say what was pulled: its licence, costs and accuracy."""
    origin = manifest.metadata.get("origin")
    if isinstance(origin, dict) and origin.get("license"):
        log.info(f"license: {one_line(origin['license'], 100)}")
    row = Entry.of(manifest).facts
    if not numbers_of(row, "top1", *LIMITED):  # a learngene, or what a script of its own published
        return
    log.info(
        f"{format_quantity('params', row['params'])} parameters, {format_quantity('macs', row['macs'])} MACs, "
        f"{row['latency']:.3g} ms on {measured_on(row)}, top-1 {row['top1']:.2f} %"
    )
    if timings := device_timings(config, store):
        log.info(f"on {timings.device}: {timings.of(row)} ({timings.text})")
    if row.get("exports") and not config.format:
        log.info(f"exports: {str(row['exports']).replace(',', ', ')} (--format fetches one)")
    if row.get("outside"):
        log.info(f"note: {row['outside']}")


def _trained_or_expanded(config: PullConfig, store: Store) -> Manifest | Path:
    """Print the best trained descendant and the largest expansion within the limits, and choose one.

    Returns:
        The descendant, or the folder of the expansion.
    """
    trained: Manifest | None = None
    try:
        trained = select_descendant(config, store)
        log.info(f"trained    {_trained_text(trained)}")
    except NothingWithin as nothing:
        if config.device and str(nothing) == no_record(store.uri, config.device):
            raise  # the latency of an expansion is not known either
        log.info(f"trained    {nothing}")
    except Denied as denied:  # an expansion needs no list of the trained ones
        if not config.expand:
            raise
        log.info(f"trained    {denied}")
    if config.out and (trained is None or config.expand):
        check_free(local_path(config.out), config.overwrite, MODEL_MARK)  # here, not after torch is imported
    try:
        from ray_learngene.delivery.expand import UNKNOWN, Expander, size_text
        from ray_learngene.models.sizes import size_name
    except ModuleNotFoundError:
        if trained is None or config.expand:
            raise
        log.info("expanded   (what can be expanded is only known where torch and timm are installed)")
        return trained
    expander = Expander.open(store, str(config.learngene))
    timings = device_timings(config, store)
    try:
        if config.max_latency and config.device and not timings:
            raise NothingWithin(no_record(store.uri, config.device))
        spec = expander.largest(config.limits, expander.sizes(), timings)
    except NothingWithin as nothing:
        if trained is None or config.expand:
            raise
        log.info(f"expanded   {nothing}")
        return trained
    log.info(f"expanded   {size_text(spec)}, {expander.accuracy(spec) or UNKNOWN}")
    for note in expander.notes(spec):
        log.info(f"           note: {note}")
    if config.format:
        if trained is None:
            raise NothingWithin(
                f"no trained descendant with {config.format} is within the limits: expand and export one"
            )
        return trained
    if trained is not None and not config.expand:
        log.info("taking the trained one (--expand takes the other)")
        return trained
    out = local_path(config.out or f"{config.learngene}-{size_name(spec)}")
    made = expander.write(spec, out, overwrite=config.overwrite)
    log.info(f"expanded {config.learngene} to {made.path}")
    return made.path


def _trained_text(manifest: Manifest) -> str:
    row = Entry.of(manifest).facts
    costs = {name: format_quantity(name, row[name]) for name in ("params", "macs", "memory")}
    return (
        f"{manifest.name}: {costs['params']} parameters, {costs['macs']} MACs, {costs['memory']} to run, "
        f"top-1 {row['top1']:.2f} % on {row.get('data')}"
    )
