"""From a URI to the two libraries that read and write it, and from their errors to one clear line.

pyarrow's filesystem moves bytes and tables: it is several times faster than s3fs, and Ray's storage and Parquet speak
it. s3fs, the S3 side of fsspec, lists, deletes and creates an object only if it is absent, which pyarrow cannot. Both
find endpoint, region and credentials in the standard AWS variables and profiles; credentials are never passed on, so a
pickled filesystem carries none.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
import pyarrow
import pyarrow.fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as NoConnection

from ray_learngene.errors import UserError

CONNECT_SECONDS = 5
REQUEST_SECONDS = 15
ATTEMPTS = 2

S3_URI = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<prefix>/[^?#]*)?")
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"


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


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI, for bytes and tables, and the path in it.

    Do not keep the result in a module: an S3 filesystem that outlives the interpreter can abort the exit.

    Raises:
        UserError: The URI is not supported, or the region of its bucket cannot be found out.
    """
    scheme, path = locate(uri)
    if scheme == "file":
        return pyarrow.fs.LocalFileSystem(), path
    with clear_errors(uri):
        settings = _s3_settings()
        endpoint = urlsplit(settings["endpoint"] or "")
        if endpoint.hostname:
            place = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc}
            region = settings["region"] or "us-east-1"
        else:
            place = {}
            region = settings["region"] or pyarrow.fs.resolve_s3_region(path.split("/")[0])
        filesystem = pyarrow.fs.S3FileSystem(
            region=region,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            # In pyarrow 26 an upload that fails in the background can end the process (a segmentation fault), and with
            # allow_delayed_open, copy_files takes a refused small file for written.
            background_writes=False,
            allow_delayed_open=False,
            tls_ca_file_path=settings["ca_bundle"],
            **place,
        )
    return filesystem, path


def listing(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URI, for lists, deletions and conditional writes, and the path in it.

    Not safe to use after a fork: open it in the process that uses it.

    Raises:
        UserError: The URI is not supported.
    """
    scheme, path = locate(uri)
    if scheme == "file":
        return fsspec.filesystem("file", skip_instance_cache=True), path
    with clear_errors(uri):
        settings = _s3_settings()
        filesystem = fsspec.filesystem(
            "s3",
            skip_instance_cache=True,  # a cached one keeps the credentials and the endpoint of an earlier environment
            use_listings_cache=False,
            endpoint_url=settings["endpoint"],
            client_kwargs={"region_name": settings["region"]} if settings["region"] else {},
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": REQUEST_SECONDS,
                "retries": {"max_attempts": ATTEMPTS},
            },
        )
        filesystem.retries = ATTEMPTS  # s3fs repeats on top of botocore, five times where it is left alone
    return filesystem, path


def _s3_settings() -> dict[str, str | None]:
    """Endpoint, region and certificate bundle as the AWS variables and the profile give them, None if they do not."""
    # Only here: sessions are slow to import, and a local path needs none.
    import botocore.configprovider
    import botocore.session

    session = botocore.session.Session()
    configured = botocore.configprovider.ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    endpoint = configured.provide()
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError("AWS_ENDPOINT_URL must begin with http:// or https://: add it")
    return {
        "endpoint": endpoint,
        # botocore reads AWS_DEFAULT_REGION only; every other AWS library reads AWS_REGION, and first.
        "region": os.environ.get("AWS_REGION") or session.get_config_variable("region"),
        "ca_bundle": session.get_config_variable("ca_bundle"),
    }


def s3_code(error: BaseException) -> str:
    """The S3 error code of what pyarrow, s3fs or botocore raised, in capitals without separators; "" without one."""
    for each in (error, error.__cause__):
        if isinstance(each, ClientError):
            return _plain(each.response.get("Error", {}).get("Code", ""))
    match = re.search(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?", str(error))
    return _plain(match[2] or match[1]) if match else ""


def _plain(code: Any) -> str:
    return str(code).replace("_", "").upper()


REJECTED = f"the S3 server does not accept the credentials for {{uri}}: set {KEYS}"
DENIED = f"access to {{uri}} is denied: check {KEYS}, and that this key may list, read and write there"
EXPIRED = "the credentials for {uri} have expired: renew them (AWS_SESSION_TOKEN, AWS_PROFILE)"
NO_KEYS = f"no S3 credentials for {{uri}}: set {KEYS}"
NO_BUCKET = "the bucket of {uri} does not exist: create it, or correct the name or AWS_ENDPOINT_URL"
REGION = "the bucket of {uri} is in another region: set AWS_REGION"
UNREACHABLE = "no answer from the S3 server {endpoint} for {uri}: check AWS_ENDPOINT_URL and the network"
FAILING = "the S3 server of {uri} is overloaded or failing: run the command again later"
CLOCK = "the S3 server of {uri} refuses this machine's clock: set the time"
NOTHING = "nothing is at {uri}: check the name"
FORBIDDEN = "no permission for {uri}: choose another place or change the permissions"
FULL = "the disk of {uri} is full: free space and run the command again"
NO_FOLDER = "{uri} cannot be a folder: a file stands in its way; choose another place"
IN_THE_WAY = "a folder that is not empty stands at {uri}: remove it or choose another place"

BY_CODE = {
    **dict.fromkeys(("INVALIDACCESSKEYID", "SIGNATUREDOESNOTMATCH", "INVALIDCLIENTTOKENID", "INVALIDTOKEN"), REJECTED),
    **dict.fromkeys(("UNRECOGNIZEDCLIENT", "INVALIDSIGNATURE", "401"), REJECTED),
    **dict.fromkeys(("ACCESSDENIED", "ALLACCESSDISABLED", "FORBIDDEN", "403"), DENIED),
    **dict.fromkeys(("EXPIREDTOKEN", "TOKENREFRESHREQUIRED"), EXPIRED),
    **dict.fromkeys(("PERMANENTREDIRECT", "AUTHORIZATIONHEADERMALFORMED", "301"), REGION),
    **dict.fromkeys(("SLOWDOWN", "SERVICEUNAVAILABLE", "THROTTLING", "INTERNALERROR", "INTERNALFAILURE"), FAILING),
    **dict.fromkeys(("500", "502", "503", "504"), FAILING),
    **dict.fromkeys(("NOSUCHKEY", "RESOURCENOTFOUND", "404"), NOTHING),
    "MISSINGAUTHENTICATIONTOKEN": NO_KEYS,
    "NOSUCHBUCKET": NO_BUCKET,
    "NETWORKCONNECTION": UNREACHABLE,
    "REQUESTTIMEOUT": UNREACHABLE,
    "REQUESTTIMETOOSKEWED": CLOCK,
}
BY_TYPE: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((NoCredentialsError, PartialCredentialsError), NO_KEYS),
    (ProfileNotFound, "AWS_PROFILE names a profile that does not exist: correct it for {uri}"),
    ((NoConnection, HTTPClientError, ConnectionError, TimeoutError), UNREACHABLE),
    (FileNotFoundError, NOTHING),
    (PermissionError, FORBIDDEN),
)
BY_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FULL),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), NO_FOLDER),
    errno.ENOTEMPTY: IN_THE_WAY,
    errno.EROFS: FORBIDDEN,
}


def explain(error: BaseException, uri: str) -> UserError:
    """Say in one line what went wrong at `uri` and which variable or place to change."""
    text = BY_CODE.get(s3_code(error))
    text = text or next((text for types, text in BY_TYPE if isinstance(error, types)), None)
    if text is None and isinstance(error, OSError):
        text = BY_ERRNO.get(error.errno or 0)
    if text is None:
        detail = " ".join(str(error).split()) or type(error).__name__
        return UserError(f"{uri} cannot be read or written: {detail[:300]}")
    return UserError(text.format(uri=uri, endpoint=_endpoint_host() if "{endpoint}" in text else ""))


def _endpoint_host() -> str:
    """Host and port of the S3 server, without whatever else its URL holds."""
    parts = urlsplit(_s3_settings()["endpoint"] or "https://s3.amazonaws.com")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Turn whatever the storage libraries and the operating system raise inside into a UserError about `uri`."""
    try:
        yield
    except (OSError, pyarrow.ArrowException, BotoCoreError, ClientError) as error:
        raise explain(error, uri) from error
