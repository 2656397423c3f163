"""The provenance of an artefact: versions and git revision, stored in every manifest."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from ray_learngene import __version__

REVISION_VARIABLE = "LEARNGENE_GIT_REVISION"  # travels with a submitted job, whose package is no checkout
_LOCAL_PATH = re.compile(r"(?P<kind>local-dir:|wds/|hfds/|torch/)?(?:file://)?(?P<path>[/~].*)", re.DOTALL)
_PASSWORD = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)?[^/?#]*:[^/?#]*@")
_PACKAGES = ("torch", "timm", "ray", "deepspeed", "numpy", "pyarrow")
METHODS_GROUP = "ray_learngene.methods"  # entry points of packages that offer methods


def provenance() -> dict[str, Any]:
    """Return the versions of the packages, and the git revision if this package runs from a checkout."""
    return {"versions": dict(_versions(tuple(sys.path))), "git_revision": git_revision()}


@cache
def _versions(path: tuple[str, ...]) -> dict[str, str]:
    """Read once for a search path, which decides what can be found: a sweep asks for every descendant."""
    versions = {"python": platform.python_version(), "ray_learngene": __version__}
    offering = (point.dist for point in entry_points(group=METHODS_GROUP))
    versions |= {package.name: package.version for package in offering if package is not None}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def git_revision() -> str | None:
    """Return the revision of the checkout that this package runs from, or of the one that it was submitted from."""
    if REVISION_VARIABLE in os.environ:
        return os.environ[REVISION_VARIABLE]
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is installed inside another repository
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def fingerprint(facts: Any) -> str:
    """SHA-256 of facts as canonical JSON: equal facts, equal fingerprint."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


_PRIVATE = ("address", "storage_options", "track")


def publishable(settings: Any) -> Any:
    """Return settings as every reader of a store may see them.

    Of a local path only the last part stays. A URI loses its password. The addresses of a Ray cluster and of trackers,
    and storage options, are left out.
    """
    if isinstance(settings, dict):
        return {key: publishable(value) for key, value in settings.items() if key not in _PRIVATE}
    if isinstance(settings, list | tuple):
        return [publishable(value) for value in settings]
    if not isinstance(settings, str):
        return settings
    local = _LOCAL_PATH.fullmatch(settings)
    if local:
        return f"{local['kind'] or ''}{Path(local['path']).name}"
    return without_password(settings)


def without_password(uri: str) -> str:
    """Return a URI without user name and password."""
    return _PASSWORD.sub(r"\1", uri)
