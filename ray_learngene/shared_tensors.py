"""Tensors that Ray sends are held once per host, in its object store, and read there by all workers.

Ray asks for the setting when it is imported, so this is imported before it. Whoever receives a tensor that he will
write to, as training does to weights, copies it first.
"""

import os

os.environ.setdefault("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1")
