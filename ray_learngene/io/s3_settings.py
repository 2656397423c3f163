"""Where the S3 server is, as storage options, the standard AWS variables and profiles say, in this order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ray_learngene.errors import UserError
from ray_learngene.io.schemes import S3_KEYS

if TYPE_CHECKING:
    from botocore.session import Session

CONNECT_SECONDS = 5
REQUEST_SECONDS = 15  # that a server may take for its next bytes


def s3_session(options: Mapping[str, Any]) -> Session:
    """Return a session of botocore with the profile of the storage options, else of AWS_PROFILE."""
    import botocore.session  # only here: sessions are slow to import, and a local path needs none

    return botocore.session.Session(profile=options.get("profile"))


def s3_settings(options: Mapping[str, Any]) -> dict[str, str | None]:
    """Endpoint, region and certificate bundle as options, AWS variables and profile give them, None if they do not.

    Args:
        options: Storage options; see options.py.

    Raises:
        UserError: The endpoint is not a URL of a server alone (the message does not repeat it), or there is no such
            certificate bundle.
    """
    import botocore.configprovider
    from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

    session = s3_session(options)
    configured = botocore.configprovider.ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    client = options.get("client_kwargs") or {}
    endpoint = options.get("endpoint_url") or client.get("endpoint_url") or configured.provide()
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError("AWS_ENDPOINT_URL must begin with http:// or https://: add it")
    try:
        secret = bool(endpoint) and "@" in urlsplit(endpoint).netloc
        valid = not endpoint or is_valid_endpoint_url(endpoint) or is_valid_ipv6_endpoint_url(endpoint)
    except ValueError:
        secret, valid = False, False
    if secret:
        raise UserError(f"AWS_ENDPOINT_URL holds a user name or a password: take them out, and set {S3_KEYS}")
    if not valid:
        raise UserError("AWS_ENDPOINT_URL is no URL of a server (host names have letters, digits, - and .): mend it")
    verify = client.get("verify")
    ca_bundle = verify if isinstance(verify, str) else session.get_config_variable("ca_bundle")
    if ca_bundle and not os.path.exists(ca_bundle):
        raise UserError("AWS_CA_BUNDLE (or ca_bundle of the profile) names a file that does not exist: correct it")
    return {
        "endpoint": endpoint,
        # botocore reads AWS_DEFAULT_REGION only; every other AWS library reads AWS_REGION, and first.
        "region": client.get("region_name") or os.environ.get("AWS_REGION") or session.get_config_variable("region"),
        "ca_bundle": ca_bundle,
    }


def endpoint_host(options: Mapping[str, Any]) -> str:
    """Host and port of the S3 server."""
    parts = urlsplit(s3_settings(options)["endpoint"] or "https://s3.amazonaws.com")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
