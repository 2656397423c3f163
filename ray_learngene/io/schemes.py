"""The schemes of URIs: what each is called in messages, and what a store may rely on there."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ray_learngene.errors import UserError

S3_URI = re.compile(r"s3a?://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<prefix>/[^?#]*)?")
# A user name before "@" is a container on Azure, and elsewhere may come with a password.
OTHER_URI = re.compile(r"[a-z][a-z0-9+.-]*://(?P<container>[A-Za-z0-9$-]+@)?(?P<path>[^@?#]*)")
WRAPPERS = {"dir", "zip", "tar", "libarchive", "reference", "generic", "data"}
WRAPPERS |= {"cached", "blockcache", "filecache", "simplecache", "async_wrapper", "asyncwrapper"}


@dataclass(frozen=True)
class Scheme:
    """What messages say of the places of a scheme.

    Attributes:
        server: Who answers.
        keys: What to set for access.
        address: What to set for the server's address.
        extra: Of this package, that installs its client.
        writes: Whether a store may be kept there: objects appear whole, and are listed at once.
    """

    server: str
    keys: str = "the credentials that its client reads"
    address: str = "the address"
    extra: str = ""
    writes: bool = False


S3_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
GCS_KEYS = "GOOGLE_APPLICATION_CREDENTIALS"
AZURE_KEYS = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_CONNECTION_STRING)"
SCHEMES = {
    "s3": Scheme("the S3 server", S3_KEYS, "AWS_ENDPOINT_URL", writes=True),
    "gs": Scheme("Google Cloud Storage", GCS_KEYS, GCS_KEYS, "gcs", writes=True),
    "abfs": Scheme("Azure Storage", AZURE_KEYS, "AZURE_STORAGE_ACCOUNT_NAME", "azure", writes=True),
    "hf": Scheme("the Hugging Face hub", "HF_TOKEN", "HF_ENDPOINT"),
    "memory": Scheme("this process", writes=True),
}
ALIASES = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs", "local": "file"}
CLIENTS = {"gcsfs": "gs", "google": "gs", "adlfs": "abfs", "azure": "abfs", "huggingface_hub": "hf"}


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI by its first name, "file" for a path."""
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    return ALIASES.get(scheme, scheme)


def words_of(uri: str, error: BaseException | None = None) -> Scheme:
    """Return how to speak of the place of a URI; of a path, by the client that raised an error."""
    scheme = scheme_of(uri)
    if scheme == "file" and error is not None:
        scheme = CLIENTS.get(type(error).__module__.partition(".")[0], "s3")
    return SCHEMES.get(scheme) or Scheme(f"the server of {scheme}://")


def locate(uri: str) -> tuple[str, str]:
    """Split a URI into a scheme and a path: an absolute local path ("file"), "bucket/prefix" ("s3"), or what follows.

    Raises:
        UserError: The scheme is not known, its client is not installed, or the URI can only be misread.
    """
    scheme = scheme_of(uri)
    if scheme == "s3":
        match = S3_URI.fullmatch(uri)
        parts = [part for part in (match["prefix"] or "").split("/") if part] if match else []
        if match is None or any(part in (".", "..") for part in parts):
            # Not echoed: what stands before an "@" or after a "?" may be a secret.
            raise UserError(
                f"not an S3 address: write s3://bucket/prefix, and set AWS_ENDPOINT_URL and {S3_KEYS} for the rest"
            )
        return "s3", "/".join([match["bucket"], *parts])
    if scheme == "file" and uri:
        path = url2pathname(urlsplit(uri).path) if "://" in uri else uri
        return "file", os.path.abspath(os.path.expanduser(path))
    package = _client_package(uri, scheme)
    match = OTHER_URI.fullmatch(uri)
    if match is None or (match["container"] and scheme != "abfs") or {".", ".."} & set(match["path"].split("/")):
        raise UserError(f"not an address: write {scheme}://place/path, without user, password or query")
    _require(package, scheme)
    parts = [part for part in match["path"].split("/") if part]
    return scheme, f"{match['container'] or ''}{'/'.join(parts)}"


def _client_package(uri: str, scheme: str) -> str:
    """Return the package with fsspec's client of a scheme."""
    from fsspec.registry import known_implementations  # only here: a second of what a local path does not need

    client = known_implementations.get(uri.partition("://")[0], {}).get("class", "")
    if not client or scheme in WRAPPERS:
        raise UserError(
            f"{f'{scheme}://' if uri else 'an empty address'} is not supported: give a local path, s3://bucket/prefix, "
            "gs://bucket/prefix, abfs://container/prefix or another scheme of fsspec"
        )
    return str(client.partition(".")[0])


def _require(package: str, scheme: str) -> None:
    if importlib.util.find_spec(package) is None:
        extra = SCHEMES[scheme].extra if scheme in SCHEMES else ""
        name = f"'ray_learngene[{extra}]'" if extra else package
        raise UserError(f"{scheme}:// needs the package {package}: pip install {name}")
