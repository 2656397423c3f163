"""Arms of a sweep: the methods compared at every size, each with the learngene that it expands."""

from __future__ import annotations

import string
from dataclasses import dataclass, field

from ray_learngene.errors import UserError
from ray_learngene.methods.base import Method
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import Spec

_PLACEHOLDERS = ("seed", "depth", "width")


@dataclass(frozen=True)
class Arm:
    """`METHOD[:option=value]...[@LEARNGENE]`.

    Attributes:
        text: As the user wrote it; the arm's name in every table.
        learngene: Name of the learngene. `{seed}`, `{depth}` and `{width}` stand for those of the descendant, so that
            every seed can have a learngene of its own. None if the method needs none.
    """

    text: str
    method: Method = field(compare=False)
    learngene: str | None

    @classmethod
    def parse(cls, text: str, default: str) -> Arm:
        """Read an arm; `default` is the learngene where the text names none.

        Raises:
            UserError: unknown method or option, a learngene for a method that takes none, or an unknown placeholder.
        """
        method_text, at, name = text.strip().partition("@")
        method = create_method(method_text)
        if at and not method.needs_learngene:
            raise UserError(f"arm {text!r}: {method.name!r} expands no learngene: leave out @{name}")
        name = name or default
        try:
            unknown = [
                part
                for _, part, spec, conversion in string.Formatter().parse(name)
                if part not in (None, *_PLACEHOLDERS) or spec or conversion
            ]
        except ValueError:
            unknown = [name]
        if unknown:
            raise UserError(f"arm {text!r}: a learngene's name may hold {{seed}}, {{depth}} and {{width}} only")
        return cls(text.strip(), method, name if method.needs_learngene else None)

    def learngene_of(self, spec: Spec, seed: int) -> str | None:
        """Return the learngene that a descendant expands."""
        return self.learngene and self.learngene.format(seed=seed, depth=spec.depth, width=spec.width)
