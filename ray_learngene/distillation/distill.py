"""Distillation: an ancestry model and images become a learngene.

learngene distill --data digits --ancestry store:ancestries/digits --preset nano --name digits --workers 2
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from ray_learngene.ancestry.classes import match_classes
from ray_learngene.ancestry.model import Ancestry, load_ancestry
from ray_learngene.ancestry.origin import stored_origin
from ray_learngene.config import DistillConfig
from ray_learngene.config.data import Interpolation
from ray_learngene.data.image_set import ImageSets
from ray_learngene.data.pipeline import ImagePipeline, checked_image_sets
from ray_learngene.distillation.distill_task import DistillTask
from ray_learngene.distillation.features import FeatureTask, feature_student, refuse_cache
from ray_learngene.distillation.phases import phases, require_both
from ray_learngene.distillation.run import run
from ray_learngene.distillation.task import open_store, settings_path
from ray_learngene.errors import UserError
from ray_learngene.methods.base import Learngene, Method
from ray_learngene.methods.generated import GeneratingMethod, attribute_of
from ray_learngene.methods.registry import create_method
from ray_learngene.methods.warm_start import start_from_model
from ray_learngene.models.build import meta_model
from ray_learngene.models.costs import require_room
from ray_learngene.models.meta import on_meta
from ray_learngene.models.origin import Origin, data_name
from ray_learngene.models.preprocessing import Preprocessing, per_channel
from ray_learngene.models.sizes import student_spec
from ray_learngene.models.specs import Spec
from ray_learngene.progress import counted
from ray_learngene.store.learngenes import StoredLearngene, in_order_of
from ray_learngene.store.manifest import Manifest
from ray_learngene.store.store import Store
from ray_learngene.tracking.trackers import Trackers
from ray_learngene.training.optimizers import require_layers

if TYPE_CHECKING:
    from ray.train import UserCallback

log = logging.getLogger(__name__)


def distill(
    config: DistillConfig, callbacks: Sequence[UserCallback] = (), trackers: Trackers | None = None
) -> Manifest:
    """Distil an ancestry model into a learngene and publish it in the store; with `alpha` 0 labels alone teach it.

    With `untied_epochs` it is two trainings, of which each goes on where it was interrupted.

    Args:
        callbacks: Ray Train's (`ray.train.UserCallback`), which run in its controller.
        trackers: Follow the run; default: those of its settings.

    Raises:
        UserError: see the message; nothing has been trained then.
    """
    first, *others = phases(config)
    if others:
        require_both(Store.of(config), config)
    made = run(prepare(first), callbacks, trackers)
    for phase in others:
        made = run(prepare(phase), callbacks, trackers)
    return made


def prepare(config: DistillConfig) -> DistillTask:
    """Read and check everything that a distillation needs."""
    method = create_method(config.method)
    spec = auxiliary_spec(config)
    with on_meta():  # what the method cannot train is refused before anything is read
        sketch = method.auxiliary(spec)
    require_layers(sketch, config)
    if config.depth:
        check_depth(sketch, config.depth, config.method)
    store = open_store(config, "learngene")
    features = config.teach == "features"
    ancestry = load_ancestry(config.ancestry, store, features=features) if config.ancestry else None
    if config.warm_start and ancestry:
        start_from_model(sketch, ancestry.model, config.warm_start)
    start = StoredLearngene.load(store, config.start) if config.start else None
    given = ancestry or (_preprocessing_of(start) if start else None)
    if given:
        config = with_interpolation(config, given.interpolation, store)
    sets = checked_image_sets(config)
    labels: tuple[str, ...] = () if features else sets.train.classes
    if ancestry and not features:
        if not config.labels:
            labels = ancestry.labels
            log.info("no labels: top-1 is the agreement with the ancestry model's decisions")
        reference = str(config.ancestry)
        match_classes(ancestry, reference, config.data, sets, labelled=config.labels, unreadable=config.unreadable)
    spec = auxiliary_spec(config, ancestry.classes if ancestry and not features else len(labels))
    torch.manual_seed(config.seed)
    module = method.auxiliary(spec, drop_path=config.drop_path)
    if start:
        _start_from(module, method, in_order_of(start.learngene, labels) or start.learngene, config)
    if config.warm_start and ancestry:
        order = None if ancestry.order is None else ancestry.order.tolist()
        start_from_model(module, ancestry.model, config.warm_start, order)
    images = images_for(config, sets, spec, given)
    facts: dict[str, Any] = {"data_sha256": sets.train.fingerprint}
    if ancestry:
        facts |= {"ancestry_sha256": ancestry.sha256(), **ancestry.resizing(spec.image)}
    if start:
        facts["start_version"] = start.manifest.version
    sources = [*([ancestry.origin] if ancestry else []), *([stored_origin(start.manifest, store)] if start else [])]
    origin = Origin.join(sources, data=data_name(config.data), data_license=sets.license, stated=config.license)
    task = DistillTask
    if ancestry and features:
        refuse_cache(config, ancestry, images)
        task, module = FeatureTask, feature_student(config, module, ancestry, spec.image)
    return task(config, store, images, module, facts, origin, method, ancestry, labels, start)


def with_interpolation(config: DistillConfig, interpolation: str, store: Store) -> DistillConfig:
    """Resize images as the ancestry model does, unless the user says otherwise or the run began otherwise."""
    if "interpolation" in config.model_fields_set or interpolation not in get_args(Interpolation):
        return config
    name = config.name
    if name and not config.overwrite:
        if store.exists("learngene", name):
            begun: dict[str, Any] | None = store.manifest("learngene", name).metadata.get("config")
        else:
            begun = store.read_object(settings_path("learngene", name), "--overwrite starts the run again")
        interpolation = (begun or {}).get("interpolation", interpolation)
    return config.model_copy(update={"interpolation": interpolation})


def auxiliary_spec(config: DistillConfig, classes: int | None = None) -> Spec:
    """Return the spec of the auxiliary model.

    Args:
        classes: Of the ancestry model, or of the images; default: what the preset or the student has.

    Raises:
        UserError: there is no such preset or timm model, or it has no such size.
    """
    kind = "depths" if isinstance(config.depth, tuple) else "depth"
    if isinstance(config.depth, tuple) and config.student is None:
        raise UserError(f"--depth {'-'.join(map(str, config.depth))}: a preset has one stage; give one number")
    spec = student_spec(config, classes=classes, width=config.width, image=config.image_size, **{kind: config.depth})
    require_room(spec)
    return spec


def check_depth(module: nn.Module, depth: int | tuple[int, ...], method: str) -> None:
    """Refuse a depth that the method does not give its auxiliary model.

    Raises:
        UserError: the depths differ.
    """
    spec = getattr(module, "spec", None)
    total = depth if isinstance(depth, int) else sum(depth)
    if spec is not None and spec.depth != total:
        raise UserError(
            f"--depth {depth} and --method {method} ({counted(spec.depth, 'layer')}) disagree: leave one out"
        )


def images_for(
    config: DistillConfig, sets: ImageSets, spec: Spec, given: Ancestry | Preprocessing | None
) -> ImagePipeline:
    """Return the student's images.

    Args:
        given: The ancestry model, or the preprocessing of the learngene to start from: what normalises the images, and
            another interpolation is logged. Without it they are normalised as timm's model of this architecture.
    """
    if given and given.interpolation != config.interpolation:
        log.info(
            f"views are resized with {config.interpolation} interpolation (--interpolation), "
            f"{'the ancestry model' if isinstance(given, Ancestry) else f'the learngene {config.start}'} was trained "
            f"with {given.interpolation}"
        )
    given = given or Preprocessing.of(meta_model(spec), str(config.student or config.preset), input_size=spec.image)
    preprocessing = Preprocessing(
        image_size=spec.image,
        mean=per_channel(given.mean, spec.image.channels),
        std=per_channel(given.std, spec.image.channels),
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    if isinstance(given, Ancestry):
        given.accept(preprocessing.mean, preprocessing.std)
    return ImagePipeline.of(sets, preprocessing, config)


def _preprocessing_of(start: StoredLearngene) -> Preprocessing | None:
    """Return the preprocessing of a learngene; one that was extracted may have none."""
    facts = start.learngene.preprocessing
    return Preprocessing(**facts) if facts else None


def _start_from(module: nn.Module, method: Method, learngene: Learngene, config: DistillConfig) -> None:
    """Load a learngene of the same method and shape into an auxiliary model; a head of other classes stays as it is."""
    state, genes = module.state_dict(), dict(learngene.tensors)
    if isinstance(method, GeneratingMethod) and learngene.method == method.name:
        genes = method.started(genes, getattr(module, "spec", learngene.spec))
    given = {attribute_of(name) if attribute_of(name) in state else name: x for name, x in genes.items()}
    heads = {
        name
        for name in given
        if name.startswith("head") and (name not in state or given[name].shape != state[name].shape)
    }
    given = {name: tensor for name, tensor in given.items() if name not in heads}
    odd = [name for name in given if name not in state or given[name].shape != state[name].shape]
    missing = {name for name in state if not name.startswith("head")} - given.keys()
    if odd or missing:
        raise UserError(
            f"--start {config.start}: a learngene of method {learngene.method!r} ({learngene.spec}) does not fit "
            f"--method {config.method} ({getattr(module, 'spec', '')})"
        )
    module.load_state_dict({**state, **given})
