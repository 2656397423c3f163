"""timm's names are read from its files as timm itself has them."""

from __future__ import annotations

import timm
from timm.models._registry import _deprecated_models

from ray_learngene.models.architectures import _names, _source, may_exist


def test_the_names_in_timms_files_are_those_that_it_registers() -> None:
    assert set(_names()) == set(timm.list_models()) - _registered_elsewhere()
    assert all(f"'{name}'" in _source() for name in _deprecated_models)
    assert may_exist("resnet18") and may_exist(next(iter(_deprecated_models)))
    assert not any(map(may_exist, ("resnet81", "vit_tiny", "")))


def _registered_elsewhere() -> set[str]:
    """Models that other tests have added to timm."""
    return {name for name in timm.list_models() if not timm.model_entrypoint(name).__module__.startswith("timm.")}
