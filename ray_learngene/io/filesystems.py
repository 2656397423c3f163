"""From a URI to pyarrow's filesystem, which Ray's storage speaks.

It finds endpoint, region and credentials in the standard AWS variables and profiles, as the store's own client does
(s3_client.py). Credentials are never passed on, so a pickled filesystem carries none.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow.fs

from ray_learngene.errors import UserError
from ray_learngene.io import s3_settings
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.s3_settings import KEYS

ATTEMPTS = 2  # that pyarrow makes at least
REPEATED_WAIT = 15.0  # seconds between its later attempts: 20 at most, with jitter

S3_URI = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<prefix>/[^?#]*)?")


def locate(uri: str) -> tuple[str, str]:
    """Split a URI into a scheme ("file" or "s3") and a path: an absolute local path, or "bucket/prefix".

    Raises:
        UserError: The scheme is not supported, or the URI has a form that could only be misread.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme == "s3":
        match = S3_URI.fullmatch(uri)
        parts = [part for part in (match["prefix"] or "").split("/") if part] if match else []
        if match is None or any(part in (".", "..") for part in parts):
            # Not echoed: what stands before an "@" or after a "?" may be a secret.
            raise UserError(
                f"not an S3 address: write s3://bucket/prefix, and set AWS_ENDPOINT_URL and {KEYS} for the rest"
            )
        return "s3", "/".join([match["bucket"], *parts])
    if scheme != "file" or not uri:
        raise UserError(f"{scheme}:// is not supported: give a local path, file:///path or s3://bucket/prefix")
    path = url2pathname(urlsplit(uri).path) if uri.startswith("file://") else uri
    return "file", os.path.abspath(os.path.expanduser(path))


class RetryingS3FileSystem(pyarrow.fs.S3FileSystem):
    """pyarrow's, whose retry strategy survives pickling; pyarrow 26 forgets it, and Ray pickles it to every worker."""

    def __init__(self, opened_with: tuple[str, float], **settings: Any) -> None:
        super().__init__(**settings)
        self._opened_with = opened_with

    def __reduce__(self) -> tuple[Callable[[str, float], pyarrow.fs.FileSystem], tuple[str, float]]:
        return _open_again, self._opened_with


def _open_again(uri: str, retry_seconds: float) -> pyarrow.fs.FileSystem:
    return filesystem(uri, retry_seconds)[0]


def filesystem(uri: str, retry_seconds: float = 0.0) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI, for bytes and tables, and the path in it.

    Do not keep the result in a module: an S3 filesystem that outlives the interpreter can abort the exit.

    Args:
        uri: A local path, or s3://bucket/prefix.
        retry_seconds: For about so long the filesystem itself repeats what an S3 server does not answer, for users that
            do not, such as Ray.

    Raises:
        UserError: The URI is not supported, or the region of its bucket cannot be found out.
    """
    scheme, path = locate(uri)
    if scheme == "file":
        return pyarrow.fs.LocalFileSystem(), path
    with clear_errors(uri):
        settings = s3_settings.s3_settings()
        endpoint = urlsplit(settings["endpoint"] or "")
        if endpoint.hostname:
            place = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc}
            region = settings["region"] or "us-east-1"
        else:
            place = {}
            region = settings["region"] or pyarrow.fs.resolve_s3_region(path.split("/")[0])
        filesystem = RetryingS3FileSystem(
            (uri, retry_seconds),
            region=region,
            connect_timeout=s3_settings.CONNECT_SECONDS,
            request_timeout=s3_settings.REQUEST_SECONDS,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_attempts(retry_seconds)),
            # In pyarrow 26 an upload that fails in the background can end the process (a segmentation fault), and with
            # allow_delayed_open, copy_files takes a refused small file for written.
            background_writes=False,
            allow_delayed_open=False,
            tls_ca_file_path=settings["ca_bundle"],
            **place,
        )
    return filesystem, path


def _attempts(seconds: float) -> int:
    """How often the AWS library tries in that time: its pauses double, from half a second on average."""
    return ATTEMPTS + math.ceil(seconds / REPEATED_WAIT) + (4 if seconds else 0)
