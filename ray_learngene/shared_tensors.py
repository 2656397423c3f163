"""Tensors that Ray sends are held once per host, in its object store, and read there by all workers.

Ray asks for the setting when it is imported, so this is imported before it. Whoever receives a tensor that he will
write to, as training does to weights, copies it first.
"""

import os
import warnings

os.environ.setdefault("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1")


def silence_warning() -> None:
    """Keep Ray's reminder not to write to such tensors off the terminal; called once Ray runs, which sets it up."""
    warnings.filterwarnings("ignore", message="Zero-copy tensor serialization is enabled")
