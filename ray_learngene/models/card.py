"""Model cards, with the metadata that the Hugging Face Hub reads, and other pages from the templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ray_learngene.config.image import ImageShape
from ray_learngene.models.origin import Origin
from ray_learngene.progress import counted


def model_card(
    template: str,
    *,
    name: str,
    origin: Origin,
    data: str,
    split: str,
    metrics: dict[str, float],
    task: str = "image-classification",
    **values: Any,
) -> str:
    """Render a template of `templates/`; it gets the metadata as `card_data`, `origin` and `values`.

    Args:
        data: Name of the image set that `metrics` were measured on.
        metrics: Top-1 in percent by what it is called.
        task: The hub's name of what the model is for.
    """
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_hub_id(data),
            dataset_name=data,
            dataset_split=split,
            metric_type="accuracy",
            metric_value=round(value / 100, 6),
            metric_name=label,
        )
        for label, value in metrics.items()
    ]
    card_data = ModelCardData(
        model_name=name if results else None,  # the hub's name of the results; without any there is no model-index
        library_name="timm",
        pipeline_tag=task,
        tags=[task, "timm", "learngene"],
        base_model=list(origin.base_models) or None,
        datasets=[_hub_id(name) for name in origin.datasets] or None,
        metrics=["accuracy"] if results else None,
        eval_results=results or None,
        **origin.card_license(),  # type: ignore[arg-type]
    )
    return render(template, card_data=card_data.to_yaml(), name=name, origin=origin, data=data, **values)


def export_card(origin: Origin, facts: Mapping[str, Any]) -> str:
    """Render the card of an export, of what its `export.json` says."""
    task = "image-classification" if facts["classifies"] else "image-feature-extraction"
    library = {} if facts["format"] == "torch" else {"library_name": "onnx"}
    tags = [task, "timm", "learngene"]
    card_data = ModelCardData(pipeline_tag=task, tags=tags, **library, **origin.card_license())  # type: ignore[arg-type]
    return render("export_card.md", card_data=card_data.to_yaml(), origin=origin, **facts)


def _hub_id(data: str) -> str:
    """Return the name of an image set as the hub takes one; it refuses a card with another."""
    return re.sub(r"([-.])[-.]+", r"\1", re.sub(r"[^\w./-]+", "-", data, flags=re.ASCII)).strip("-./") or "images"


def _shape(image: Any) -> str:
    """Return the shape of images, as a row or a spec holds it, in words."""
    return ImageShape.of(image).words


def render(template: str, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """Render a template of `templates/`; a value that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("ray_learngene"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"counted": counted, "shape": _shape, **(filters or {})}
    return environment.get_template(template).render(**values)
