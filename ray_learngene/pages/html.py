"""One HTML file of its parts in `templates/`, with its data inside: no network, no server, no code from elsewhere.

The content security policy names the script and the style by their hashes and allows nothing else. Data are JSON in a
block that is not executed, in which no tag can end, and the script shows texts as texts only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("page_models.js", "page_chart.js", "page.js")


def assemble(data: Mapping[str, Any], title: str) -> str:
    """Return the page that shows these data."""
    style, script = _template("page.css"), _script()
    parts = {
        "policy": f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape(title),
        "style": style,
        "data": as_json(data),
        "script": script,
    }
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], _template("page.html"))


def as_json(data: Mapping[str, Any]) -> str:
    """JSON for a block of an HTML page: no `<` and no separator of lines that is not JSON's own.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


@cache
def _script() -> str:
    parts = "\n".join(_template(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


@cache
def _template(name: str) -> str:
    return (files("ray_learngene") / "templates" / name).read_text()


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
