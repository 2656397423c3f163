"""`learngene evaluate`: the accuracy of a model folder, measured with plain timm."""

from __future__ import annotations

from ray_learngene.config import EvaluateConfig
from ray_learngene.delivery.evaluate import evaluate_model
from ray_learngene.delivery.features import FeatureScores
from ray_learngene.progress import counted


def print_evaluation(config: EvaluateConfig) -> None:
    """Print the accuracy of a model folder."""
    scores = evaluate_model(config)
    if isinstance(scores, FeatureScores):
        print(f"{config.model}: {scores} on {counted(scores.images, 'image')}")
    else:
        images = counted(int(scores.images), "image")
        print(f"{config.model}: top-1 {scores.top1:.2f} % on {images}, loss {scores.mean_loss:.4f}")
