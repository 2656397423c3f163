"""What a client is told beyond the standard variables and profiles, by the beginning of a URI.

    s3://public-images: {anon: true}
    s3://team: {profile: lab, requester_pays: true}

`--storage-options` puts them into an environment variable, so that the processes of a run find them, too. They are the
arguments of s3fs, gcsfs, adlfs or another client of fsspec, but for secrets, which variables and profiles keep.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ray_learngene.errors import UserError
from ray_learngene.io.schemes import ALIASES

VARIABLE = "LEARNGENE_STORAGE_OPTIONS"


def options_for(uri: str) -> dict[str, Any]:
    """Return the options of the longest beginning of a URI that has any.

    Raises:
        UserError: The variable holds no options.
    """
    try:
        given = json.loads(os.environ.get(VARIABLE) or "{}")
        known = {_plain(place): dict(options) for place, options in given.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{VARIABLE} is not JSON of the form {{URI: {{option: value}}}}: correct it") from None
    wanted = f"{_plain(uri)}/"
    fitting = [place for place in known if wanted.startswith(place if place.endswith("//") else f"{place}/")]
    return known[max(fitting, key=len)] if fitting else {}


def _plain(uri: str) -> str:
    scheme, found, path = uri.partition("://")
    return f"{ALIASES.get(scheme, scheme)}{found}{path.rstrip('/')}"
