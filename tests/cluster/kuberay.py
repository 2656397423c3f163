"""What KubeRay's operator accepts, by the schemas of its own custom resource definitions."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

FOLDER = Path(__file__).parents[1] / "fixtures" / "kuberay"
_FILES = {"RayCluster": "ray.io_rayclusters.yaml.gz", "RayJob": "ray.io_rayjobs.yaml.gz"}


def rejected(document: dict[str, Any]) -> list[str]:
    """What the definition of its kind says against a document; a field that it does not know is an error too."""
    errors = _validator(document["kind"], document["apiVersion"]).iter_errors(document)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


@cache
def _validator(kind: str, version: str) -> Draft7Validator:
    definition = yaml.load(gzip.decompress((FOLDER / _FILES[kind]).read_bytes()), yaml.CSafeLoader)
    served = {f"{definition['spec']['group']}/{each['name']}": each for each in definition["spec"]["versions"]}
    schema = served[version]["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return Draft7Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """The schema without fields that it does not name: the API server drops those, with a warning at most."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict
