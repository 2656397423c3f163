"""What an IAM policy of cluster/ allows: of the language, what these files use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.s3_recorder import Request

CLUSTER = Path(__file__).parents[2] / "cluster"


def refused(name: str, bucket: str, prefix: str, requests: Iterable[Request]) -> list[Request]:
    """Return those of the requests that a policy file, filled in for a store, does not allow."""
    text = (CLUSTER / name).read_text().replace("BUCKET", bucket).replace("PREFIX", prefix)
    statements = json.loads(text)["Statement"]
    return sorted((one for one in requests if not any(_allows(each, one) for each in statements)), key=str)


def _allows(statement: dict[str, Any], request: Request) -> bool:
    assert statement["Effect"] == "Allow" and statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
    actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
    if request.action not in actions or not fnmatchcase(f"arn:aws:s3:::{request.path}", statement["Resource"]):
        return False
    condition = statement.get("Condition")
    if condition is None:
        return True
    ((operator, keys),) = condition.items()
    if request.prefix is None:
        return operator == "StringLikeIfExists"
    assert operator in ("StringLike", "StringLikeIfExists")
    return any(fnmatchcase(request.prefix, pattern) for pattern in keys["s3:prefix"])
