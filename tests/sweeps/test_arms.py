"""Arms as users write them, and the learngene each descendant of an arm expands."""

from __future__ import annotations

import pytest

from ray_learngene.errors import UserError
from ray_learngene.models.specs import PRESETS
from ray_learngene.sweeps.arms import Arm

SPEC = PRESETS["nano"].replace(depth=5)


@pytest.mark.parametrize(
    ("text", "method", "learngene"),
    [
        ("sws", "sws", "default"),
        ("sws@other", "sws", "other"),
        ("sws:expansion=random@other-{seed}", "sws", "other-3"),
        ("pretrained@model-w{width}-d{depth}-s{seed}", "pretrained", "model-w48-d5-s3"),
        ("scratch", "scratch", None),
    ],
)
def test_an_arm_names_a_method_and_a_learngene(text: str, method: str, learngene: str | None) -> None:
    arm = Arm.parse(text, "default")
    assert arm.text == text and arm.method.name == method
    assert arm.learngene_of(SPEC, 3) == learngene


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scratch@other", "'scratch' expands no learngene: leave out @other"),
        ("sws@other-{size}", "may hold {seed}, {depth} and {width} only"),
        ("sws@other-{", "may hold {seed}, {depth} and {width} only"),
        ("sws@other-{}", "may hold {seed}, {depth} and {width} only"),
        ("nothing@other", "unknown method 'nothing'"),
    ],
)
def test_a_bad_arm_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Arm.parse(text, "default")
