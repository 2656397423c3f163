"""Where the S3 server is, as the standard AWS variables and profiles say."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from ray_learngene.errors import UserError

CONNECT_SECONDS = 5
REQUEST_SECONDS = 15  # that a server may take for its next bytes
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"


def s3_settings() -> dict[str, str | None]:
    """Endpoint, region and certificate bundle as the AWS variables and the profile give them, None if they do not.

    Raises:
        UserError: The endpoint is not a URL of a server alone (the message does not repeat it), or there is no such
            certificate bundle.
    """
    # Only here: sessions are slow to import, and a local path needs none.
    import botocore.configprovider
    import botocore.session
    from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

    session = botocore.session.Session()
    configured = botocore.configprovider.ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    endpoint = configured.provide()
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError("AWS_ENDPOINT_URL must begin with http:// or https://: add it")
    try:
        secret = bool(endpoint) and "@" in urlsplit(endpoint).netloc
        valid = not endpoint or is_valid_endpoint_url(endpoint) or is_valid_ipv6_endpoint_url(endpoint)
    except ValueError:
        secret, valid = False, False
    if secret:
        raise UserError(f"AWS_ENDPOINT_URL holds a user name or a password: take them out, and set {KEYS}")
    if not valid:
        raise UserError("AWS_ENDPOINT_URL is no URL of a server (host names have letters, digits, - and .): mend it")
    ca_bundle = session.get_config_variable("ca_bundle")
    if ca_bundle and not os.path.exists(ca_bundle):
        raise UserError("AWS_CA_BUNDLE (or ca_bundle of the profile) names a file that does not exist: correct it")
    return {
        "endpoint": endpoint,
        # botocore reads AWS_DEFAULT_REGION only; every other AWS library reads AWS_REGION, and first.
        "region": os.environ.get("AWS_REGION") or session.get_config_variable("region"),
        "ca_bundle": ca_bundle,
    }


def endpoint_host() -> str:
    """Host and port of the S3 server."""
    parts = urlsplit(s3_settings()["endpoint"] or "https://s3.amazonaws.com")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
