"""Return pyarrow's filesystem of a URI; image sets read tables and tar files from it."""

from __future__ import annotations

import pyarrow.fs

from ray_learngene.io.errors import clear_errors
from ray_learngene.io.fsspec_backend import arrow_filesystem
from ray_learngene.io.ray_filesystems import ray_filesystem
from ray_learngene.io.schemes import locate


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the pyarrow filesystem of a URI, for bytes and tables, and the path in it.

    pyarrow's own client of S3, and fsspec's of every other scheme, by which the store reads there, too.

    Raises:
        UserError: The URI is not supported, or the region of its bucket cannot be found out.
    """
    scheme, path = locate(uri)
    if scheme in ("file", "s3"):
        return ray_filesystem(uri)
    with clear_errors(uri):
        return arrow_filesystem(scheme, path)
