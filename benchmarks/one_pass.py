"""python -m benchmarks.one_pass [--quick] [--out FILE.json]

Time a training step of `any-size` in one forward pass, and with a pass for each of the four depths that it samples.
Both alternate in one process with one thread, on the same images; CPU seconds. 16 tokens, 12 layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from unittest import mock

import torch

from benchmarks.measure import arguments, in_turn, machine, medians, publish
from ray_learngene.methods.elastic import ElasticVisionTransformer, draw_step
from ray_learngene.methods.registry import create_method
from ray_learngene.models.specs import Spec
from ray_learngene.training.objectives import LabelObjective

WIDTHS = (24, 64, 192)
METHODS = {"growing": "any-size:shallowest=2:growth=1", "untied": "any-size:shallowest=2:growth=0:untied=true"}
BATCH, STEPS, ROUNDS = 128, 10, 5  # steps of a round are evenly spaced over a training


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(1)
    facts, rows = machine(), []
    for width in WIDTHS[:1] if args.quick else WIDTHS:
        for name, text in METHODS.items():
            step = training_step(text, width)
            sides = {"separate": lambda step=step: separately(step), "one pass": lambda step=step: cpu_seconds(step)}
            in_turn(sides, 1)
            times = in_turn(sides, 2 if args.quick else ROUNDS)
            middle = medians(times)
            ratio = middle["separate"] / middle["one pass"]
            milliseconds = {f"{side}, ms": 1e3 * middle[side] for side in sides}
            rows.append({"width": width, "any-size": name, **milliseconds, "ratio": ratio, "raw_seconds": times})
    publish("one_pass", args, facts, rows)


def training_step(text: str, width: int) -> Callable[[], None]:
    """The next step of a training; its forward and backward pass and AdamW."""
    spec = Spec(width=width, depth=12, heads=width // 8, image=32, patch=8, classes=10)
    auxiliary = create_method(text).auxiliary(spec).train()
    optimizer = torch.optim.AdamW(auxiliary.parameters(), fused=True)
    images, labels = torch.randn(BATCH, *spec.image), torch.arange(BATCH) % spec.classes
    numbers = count()

    def step() -> None:
        draw_step(auxiliary, 0, next(numbers) % STEPS, STEPS)
        optimizer.zero_grad()
        LabelObjective()(auxiliary, images, labels)["loss"].backward()
        optimizer.step()

    return step


def separately(step: Callable[[], None]) -> float:
    with mock.patch.object(ElasticVisionTransformer, "_together", lambda self: None):
        return cpu_seconds(step)


def cpu_seconds(step: Callable[[], None]) -> float:
    """CPU seconds of a step, mean over a round."""
    began = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - began) / STEPS


if __name__ == "__main__":
    main()
