"""Too little memory for a micro-batch: the same training with half of it, twice as often.

The sum of the gradients is the same. What depends on the micro-batch all the same: BatchNorm's statistics, the draw of
stochastic depth, and which image goes through which size of an elastic auxiliary model.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from ray_learngene.config import AugmentationConfig, OptimizationConfig
from ray_learngene.errors import RunError

T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=OptimizationConfig)
# how torch's CPU allocator, oneDNN, CUDA, cuBLAS (which has no memory for its handle) and Ray's memory monitor (for a
# worker that it has killed) say it
_SAID = (
    *("can't allocate memory", "could not create a primitive", "could not create a memory"),
    *("CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED"),
    *("low on memory", "OutOfMemory"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, numpy, Python or Ray means that memory was too small."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or says_out_of_memory(f"{type(error).__name__}: {error}")


def says_out_of_memory(text: str) -> bool:
    """Whether the text of an error means that memory was too small."""
    return any(words in text for words in _SAID)


def with_smaller_micro_batch(config: ConfigT, world_size: int = 1) -> ConfigT:
    """The configuration with twice the accumulation.

    Raises:
        RunError: a micro-batch is one image (one pair, where pairs are mixed) already.
    """
    mixing = isinstance(config, AugmentationConfig) and (config.mixup > 0 or config.cutmix > 0)
    most = config.batch_size // (world_size * (2 if mixing else 1))
    if config.accumulation >= most:
        smallest = "one pair of images" if mixing else "one image"
        raise RunError(
            f"out of memory with a micro-batch of {smallest}: choose a smaller model or image size, --precision bf16, "
            "or more memory"
        )
    return config.model_copy(update={"accumulation": min(2 * config.accumulation, most)})


def smaller_text(config: OptimizationConfig, world_size: int = 1) -> str:
    """One line for whoever watches."""
    images = config.batch_size // (world_size * config.accumulation)
    return (
        f"out of memory: going on with micro-batches of {images} images (accumulation {config.accumulation}, the same "
        "optimizer steps)"
    )


def within_memory(train: Callable[[ConfigT], T], config: ConfigT, tell: Callable[[str], None]) -> T:
    """Train; whenever memory does not suffice, again from the last checkpoint with half the micro-batch.

    Raises:
        RunError: memory does not suffice for the smallest micro-batch.
    """
    while True:
        try:
            return train(config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # outside of the handler, as the error's traceback holds what filled the memory
        config = with_smaller_micro_batch(config)
        release_memory()
        tell(smaller_text(config))


def release_memory() -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
