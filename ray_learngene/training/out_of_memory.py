"""After an out-of-memory error, continue the same training with half the micro-batch and twice the accumulation.

The sum of the gradients is the same. Three things still depend on the micro-batch: BatchNorm's statistics, the samples
of stochastic depth, and the sub-model of an elastic auxiliary model that an image goes through.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from ray_learngene.config import AugmentationConfig, OptimizationConfig
from ray_learngene.errors import RunError
from ray_learngene.progress import counted

T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=OptimizationConfig)
# messages of torch's CPU allocator, oneDNN, CUDA, cuBLAS (no memory for its handle) and Ray's memory monitor (it has
# killed a worker)
_MESSAGES = (
    *("can't allocate memory", "could not create a primitive", "could not create a memory"),
    *("CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED"),
    *("low on memory", "OutOfMemory"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an error of torch, numpy, Python or Ray means out of memory."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or says_out_of_memory(f"{type(error).__name__}: {error}")


def says_out_of_memory(text: str) -> bool:
    """Check whether the text of an error means out of memory."""
    return any(message in text for message in _MESSAGES)


def with_smaller_micro_batch(config: ConfigT, world_size: int = 1) -> ConfigT:
    """Return the configuration with twice the accumulation.

    Raises:
        RunError: a micro-batch is already one image (one pair if mixup or cutmix mixes pairs).
    """
    mixing = isinstance(config, AugmentationConfig) and (config.mixup > 0 or config.cutmix > 0)
    most = config.batch_size // (world_size * (2 if mixing else 1))
    if config.accumulation >= most:
        smallest = "one pair of images" if mixing else "one image"
        raise RunError(
            f"out of memory with a micro-batch of {smallest}: choose --grad-checkpointing, --precision bf16, a smaller "
            "model or image size, or more memory"
        )
    return config.model_copy(update={"accumulation": min(2 * config.accumulation, most)})


def smaller_text(config: OptimizationConfig, world_size: int = 1) -> str:
    """Return the line to log about the smaller micro-batch."""
    images = config.batch_size // (world_size * config.accumulation)
    return (
        f"out of memory: continuing with micro-batches of {counted(images, 'image')} "
        f"(accumulation {config.accumulation}, the same optimizer steps)"
    )


def within_memory(train: Callable[[ConfigT], T], config: ConfigT, tell: Callable[[str], None]) -> T:
    """Train; after an out-of-memory error retry from the last checkpoint with half the micro-batch.

    Raises:
        RunError: memory is too small even for the smallest micro-batch.
    """
    while True:
        try:
            return train(config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # outside the handler, because the error's traceback holds the tensors that filled the memory
        config = with_smaller_micro_batch(config)
        release_memory()
        tell(smaller_text(config))


def release_memory() -> None:
    """Collect garbage and return unused GPU memory to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
