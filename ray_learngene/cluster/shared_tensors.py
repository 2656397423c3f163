"""Import Ray so that a tensor it sends is stored once per host and read by all workers without a copy.

Code that writes to a received tensor, as training does, copies it first. RAY_ENABLE_ZERO_COPY_TORCH_TENSORS=0 switches
this off.
"""

import os
import warnings

_SETTING = "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"


def _import_ray() -> None:
    """Ray reads the setting when it is imported. Only the sender needs it: Ray's processes would all import torch."""
    here = _SETTING not in os.environ
    os.environ.setdefault(_SETTING, "1")
    import ray  # noqa: F401

    if here:
        del os.environ[_SETTING]


def silence_warning() -> None:
    """Keep Ray's reminder not to write to such tensors off the terminal; after `ray.init`, which adds a filter."""
    warnings.filterwarnings("ignore", message="Zero-copy tensor serialization is enabled")


_import_ray()
