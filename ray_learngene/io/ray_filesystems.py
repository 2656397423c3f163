"""pyarrow's own filesystems, in which Ray keeps its state, with the settings of the store's client.

Through fsspec, pyarrow loses errors of uploads: a refused file counts as uploaded. So Ray's state takes pyarrow's
clients of S3, Google Cloud Storage and Azure. Each is opened again from its URI where Ray unpickles it: no pickle holds
credentials. What a client of pyarrow cannot be told is said in one line before anything runs.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs

from ray_learngene.errors import UserError
from ray_learngene.io import s3_settings
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.options import options_for
from ray_learngene.io.schemes import AZURE_KEYS, locate

ATTEMPTS = 2  # that pyarrow makes at least
REPEATED_WAIT = 15.0  # seconds between its later attempts: 20 at most, with jitter
# How botocore may find credentials that expire, such that the AWS library of pyarrow finds and renews the same.
RENEWED_BY_BOTH = {"iam-role", "container-role", "assume-role-with-web-identity", "custom-process", "sso"}

log = logging.getLogger("ray_learngene")


class _Reopened:
    """A filesystem that pickles as its URI and the time for retries; pyarrow 26 forgets the latter of S3."""

    def __init__(self, opened_with: tuple[str, float], **settings: Any) -> None:
        super().__init__(**settings)
        self._opened_with = opened_with

    def __reduce__(self) -> tuple[Callable[[str, float], pyarrow.fs.FileSystem], tuple[str, float]]:
        return _open_again, self._opened_with


class S3(_Reopened, pyarrow.fs.S3FileSystem):
    """See `_Reopened`."""


class GoogleCloud(_Reopened, pyarrow.fs.GcsFileSystem):
    """See `_Reopened`."""


class Azure(_Reopened, pyarrow.fs.AzureFileSystem):
    """See `_Reopened`."""


def _open_again(uri: str, retry_seconds: float) -> pyarrow.fs.FileSystem:
    return ray_filesystem(uri, retry_seconds)[0]


def ray_filesystem(uri: str, retry_seconds: float = 0.0) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return a filesystem of pyarrow's own for a URI, and the path in it.

    Do not keep the result in a module: an S3 filesystem that outlives the interpreter can abort the exit.

    Args:
        retry_seconds: For about so long the filesystem itself repeats what the server does not answer, as Ray does not.

    Raises:
        UserError: pyarrow has no client for the scheme, or cannot use the settings of the store's client.
    """
    scheme, path = locate(uri)
    options = options_for(uri)
    with clear_errors(uri):
        if scheme == "file":
            return pyarrow.fs.LocalFileSystem(), path
        if scheme == "s3":
            return S3((uri, retry_seconds), **s3_arguments(path, options, retry_seconds)), path
        if scheme == "gs":
            return GoogleCloud((uri, retry_seconds), **_gcs_arguments(options, retry_seconds)), path
        if scheme == "abfs":
            container, _, rest = path.partition("/")
            name, _, account = container.partition("@")
            return Azure((uri, retry_seconds), **_azure_arguments(options, account)), f"{name}/{rest}".rstrip("/")
    raise UserError(
        f"Ray cannot keep its state at {scheme}://: keep the store in a local folder, s3://, gs:// or abfs://"
    )


def require_agreement(uri: str, storage: pyarrow.fs.FileSystem, path: str) -> None:
    """Find out whether pyarrow reaches the place that the store's client has reached.

    Raises:
        UserError: It does not; both reasons in one line.
    """
    try:
        with clear_errors(uri):
            storage.get_file_info(f"{path}/store.json")  # a key of the store: rights may end at its prefix
    except UserError as error:
        raise UserError(
            f"the store's client reaches {uri}, and pyarrow, which keeps Ray's own state there, does not ({error})"
        ) from None
    unused = [name for name in ("s3_additional_kwargs", "requester_pays") if options_for(uri).get(name)]
    if unused:
        log.warning(
            "Ray's own state in %s/runs is written without %s, which pyarrow does not know: set the bucket's defaults",
            uri,
            " and ".join(unused),
        )


def s3_arguments(path: str, options: Mapping[str, Any], retry_seconds: float) -> dict[str, Any]:
    """Return the arguments of pyarrow's S3 filesystem."""
    settings = s3_settings.s3_settings(options)
    if (options.get("client_kwargs") or {}).get("verify") is False:
        raise UserError("pyarrow cannot be told verify: false: name the server's certificate in AWS_CA_BUNDLE")
    endpoint = urlsplit(settings["endpoint"] or "")
    place = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc} if endpoint.hostname else {}
    default = "us-east-1" if endpoint.hostname else None
    region = settings["region"] or default or pyarrow.fs.resolve_s3_region(path.split("/")[0])
    return {
        **_s3_credentials(options),
        **place,
        "region": region,
        "connect_timeout": s3_settings.CONNECT_SECONDS,
        "request_timeout": s3_settings.REQUEST_SECONDS,
        "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_attempts(retry_seconds)),
        # In pyarrow 26 an upload that fails in the background can end the process (a segmentation fault), and with
        # allow_delayed_open, copy_files takes a refused small file for written.
        "background_writes": False,
        "allow_delayed_open": False,
        "tls_ca_file_path": settings["ca_bundle"],
    }


def _s3_credentials(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those that the store's client has; what expires is left to the AWS library, which renews it."""
    from botocore.credentials import RefreshableCredentials

    found = None if options.get("anon") else s3_settings.s3_session(options).get_credentials()
    if found is None:
        return {"anonymous": True}
    if not isinstance(found, RefreshableCredentials):
        keys = found.get_frozen_credentials()
        return {"access_key": keys.access_key, "secret_key": keys.secret_key, "session_token": keys.token or None}
    profile = options.get("profile")
    if found.method not in RENEWED_BY_BOTH or (profile and os.environ.get("AWS_PROFILE") != profile):
        how = f"profile {profile}" if profile else found.method
        raise UserError(
            f"pyarrow, which keeps Ray's state and reads images on S3, cannot renew credentials ({how}): set "
            "AWS_PROFILE, use a web-identity or instance role, or export keys"
        )
    return {}


def _attempts(seconds: float) -> int:
    """Return how often the AWS library tries in that time: its pauses double, from half a second on average."""
    return ATTEMPTS + math.ceil(seconds / REPEATED_WAIT) + (4 if seconds else 0)


def _gcs_arguments(options: Mapping[str, Any], retry_seconds: float) -> dict[str, Any]:
    token = options.get("token")
    if isinstance(token, str) and token.endswith(".json") and os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") != token:
        raise UserError(
            f"pyarrow, which keeps Ray's own state, reads GOOGLE_APPLICATION_CREDENTIALS, not the option token: set "
            f"it to {token}"
        )
    endpoint = urlsplit(str(options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST") or ""))
    place = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc} if endpoint.hostname else {}
    usual = s3_settings.CONNECT_SECONDS + s3_settings.REQUEST_SECONDS
    limit = timedelta(seconds=max(usual, retry_seconds))
    return {"anonymous": token == "anon", "retry_time_limit": limit, "project_id": options.get("project"), **place}


def _azure_arguments(options: Mapping[str, Any], account: str) -> dict[str, Any]:
    """From the variables that adlfs reads, too."""
    pairs = (part.partition("=") for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"))
    known = {name: value for name, _, value in pairs}
    name = account.partition(".")[0] or options.get("account_name") or known.get("AccountName")
    name = name or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not name:
        raise UserError(f"the storage account is not named: set {AZURE_KEYS}")
    key = known.get("AccountKey") or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
    signature = known.get("SharedAccessSignature") or os.environ.get("AZURE_STORAGE_SAS_TOKEN")
    found: dict[str, Any] = {"account_name": name}
    if key:
        found["account_key"] = key
    elif signature:
        found["sas_token"] = signature
    endpoint = urlsplit(known.get("BlobEndpoint", ""))
    if endpoint.netloc and not endpoint.netloc.startswith(f"{name}."):
        for service in ("blob", "dfs"):
            found |= {f"{service}_storage_authority": endpoint.netloc, f"{service}_storage_scheme": endpoint.scheme}
    return found
