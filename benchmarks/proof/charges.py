"""Seconds of the proof's runs on one machine that does nothing else: steps times the milliseconds of seconds.json.

CPU seconds of the runs themselves are those of several machines, and of others that ran at the same time.
Validation is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.proof.plan import PLAN, Plan

SECONDS = Path(__file__).with_name("seconds.json")
Row = Mapping[str, Any]


class Charges:
    """What runs cost in seconds.

    Args:
        ms: Milliseconds by step, as `benchmarks.proof.seconds` measures them.
        batch: Images of a step.
    """

    def __init__(self, ms: Mapping[str, float], batch: int) -> None:
        self.ms, self.batch = dict(ms), batch

    @classmethod
    def read(cls, path: Path = SECONDS, plan: Path = PLAN) -> Charges | None:
        """The measured charges; None where there are none."""
        if not path.exists():
            return None
        rows = json.loads(path.read_text())["rows"]
        ms = {row["step"]: row["ms"] for row in rows}
        measured = Plan(plan.read_text()).measured_as()
        return cls({**ms, **{arm: ms[one] for arm, one in measured.items() if one in ms}}, rows[0]["batch"])

    def descendant(self, row: Row) -> float:
        """Training or tuning one model, and fitting it before. The models of a sweep share loader and teacher."""
        steps = row["steps"] + (row.get("fit_steps") or 0)
        shared = steps * self.ms["loader"] / row["sweep"]["models"]
        own = steps * self.ms[f"depth {row['depth']}"]
        return (shared + own) / 1e3 + self._passes(row["teacher_flops"], row.get("teacher")) / row["sweep"]["models"]

    def learngene(self, row: Row) -> float:
        """The distillation that a row's model comes from, with what that started from; 0 without one.

        NaN where its step was not timed.
        """
        made, total = row.get("learngene"), 0.0
        while made is not None:
            cost = made["cost"]
            own = cost["steps"] * (self.ms["loader"] + self.ms.get(made.get("arm", row["arm"]), math.nan))
            total += own / 1e3 + self._passes(cost["teacher_flops"], row["teacher"])
            made = made.get("start")
        return total

    def teacher(self, row: Row) -> float:
        """The training of a row's teacher; 0 without one."""
        made = row.get("teacher")
        return made["cost"]["steps"] * (self.ms["loader"] + self.ms["teacher"]) / 1e3 if made else 0.0

    def _passes(self, flops: float, teacher: Mapping[str, Any] | None) -> float:
        """The teacher's forward passes; its training took three times the FLOPs of a forward pass for each image."""
        if teacher is None or not flops:
            return 0.0
        images = flops / (teacher["cost"]["flops"] / teacher["cost"]["images"] / 3)
        return images / self.batch * self.ms["teacher forward"] / 1e3
