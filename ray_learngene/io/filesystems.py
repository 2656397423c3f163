"""From a URI to the two libraries that read and write it.

pyarrow's filesystem is what Ray's storage and Parquet speak. botocore's client does what a store needs beyond that: it
creates an object only if it is absent, and moves the parts of large files at once. Both find endpoint, region and
credentials in the standard AWS variables and profiles; credentials are never passed on, so a pickled filesystem carries
none.
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
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.s3_settings import KEYS, s3_settings

CONNECT_SECONDS = 5
REQUEST_SECONDS = 15
ATTEMPTS = 2  # of a library; the patience of `Objects` comes on top
CONNECTIONS = 32  # that a client keeps for its next requests
REPEATED_WAIT = 15.0  # seconds between a library's later attempts; pyarrow waits 20 at most, with jitter

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


class PatientS3FileSystem(pyarrow.fs.S3FileSystem):
    """pyarrow's, whose retry strategy survives pickling; pyarrow 26 forgets it, and Ray pickles it to every worker."""

    def __init__(self, opened_with: tuple[str, float], **settings: Any) -> None:
        super().__init__(**settings)
        self._opened_with = opened_with

    def __reduce__(self) -> tuple[Callable[[str, float], pyarrow.fs.FileSystem], tuple[str, float]]:
        return _open_again, self._opened_with


def _open_again(uri: str, patience: float) -> pyarrow.fs.FileSystem:
    return filesystem(uri, patience)[0]


def filesystem(uri: str, patience: float = 0.0) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI, for bytes and tables, and the path in it.

    Do not keep the result in a module: an S3 filesystem that outlives the interpreter can abort the exit.

    Args:
        uri: A local path, or s3://bucket/prefix.
        patience: For about how many seconds the filesystem itself repeats what an S3 server does not answer, for users
            that do not, such as Ray.

    Raises:
        UserError: The URI is not supported, or the region of its bucket cannot be found out.
    """
    scheme, path = locate(uri)
    if scheme == "file":
        return pyarrow.fs.LocalFileSystem(), path
    with clear_errors(uri):
        settings = s3_settings()
        endpoint = urlsplit(settings["endpoint"] or "")
        if endpoint.hostname:
            place = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc}
            region = settings["region"] or "us-east-1"
        else:
            place = {}
            region = settings["region"] or pyarrow.fs.resolve_s3_region(path.split("/")[0])
        filesystem = PatientS3FileSystem(
            (uri, patience),
            region=region,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_attempts(patience)),
            # In pyarrow 26 an upload that fails in the background can end the process (a segmentation fault), and with
            # allow_delayed_open, copy_files takes a refused small file for written.
            background_writes=False,
            allow_delayed_open=False,
            tls_ca_file_path=settings["ca_bundle"],
            **place,
        )
    return filesystem, path


def _attempts(patience: float) -> int:
    """How often the AWS library tries to be patient that long: its pauses double, from half a second on average."""
    return ATTEMPTS + math.ceil(patience / REPEATED_WAIT) + (4 if patience else 0)


def s3_client() -> Any:
    """botocore's S3 client, for what a store does: lists, deletions, conditional writes, and files in parts.

    Threads may share it. Not safe to use after a fork: make it in the process that uses it.

    Raises:
        UserError: The endpoint is not a URL of a server alone.
    """
    import botocore.session  # only here: a local path needs none
    from botocore.config import Config

    settings = s3_settings()
    return botocore.session.Session().create_client(
        "s3",
        region_name=settings["region"],
        endpoint_url=settings["endpoint"],
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=REQUEST_SECONDS,
            retries={"total_max_attempts": ATTEMPTS},
            max_pool_connections=CONNECTIONS,
            # Over https this is the default. Over http a SHA-256 of every body would be one more, beside the manifest's
            # of the same bytes; what is damaged on its way the server sees by a CRC.
            s3={"payload_signing_enabled": False},
        ),
    )
