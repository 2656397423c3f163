"""A server that gives keys as AWS's do: STS for roles, and the portal of SSO."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ROLE = "<{0}Response><{0}Result><Credentials>{1}</Credentials></{0}Result></{0}Response>"
REFUSED = "<ErrorResponse><Error><Code>{}</Code><Message>no</Message></Error></ErrorResponse>"


class Roles:
    """A running server.

    Attributes:
        endpoint: Its URL.
        asked: What was asked for so far, in the words of AWS.
        keys: Of each answer in turn: key, secret and seconds for which they hold. The last is given again and again.
        refusal: A code that refuses every question.
    """

    def __init__(self, *keys: tuple[str, str, float]) -> None:
        self.asked: list[str] = []
        self.keys, self.refusal = list(keys), ""
        roles = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                action = parse_qs(body)["Action"][0]
                roles.asked.append(action)
                if roles.refusal:
                    return self._answer(403, "text/xml", REFUSED.format(roles.refusal))
                key, secret, until = roles.next()
                fields = {
                    "AccessKeyId": key,
                    "SecretAccessKey": secret,
                    "SessionToken": "",
                    "Expiration": until.isoformat(),
                }
                text = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
                self._answer(200, "text/xml", ROLE.format(action, text))

            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                roles.asked.append(f"{asked['role_name'][0]} of {asked['account_id'][0]}")
                if roles.refusal:
                    self.send_response(401)
                    self.send_header("x-amzn-errortype", roles.refusal)
                    self.end_headers()
                    return
                key, secret, until = roles.next()
                fields = {"accessKeyId": key, "secretAccessKey": secret, "sessionToken": ""}
                found = {**fields, "expiration": int(until.timestamp() * 1000)}
                self._answer(200, "application/json", json.dumps({"roleCredentials": found}))

            def _answer(self, status: int, kind: str, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def next(self) -> tuple[str, str, datetime]:
        """The next keys, and until when they hold."""
        key, secret, lasts = self.keys.pop(0) if len(self.keys) > 1 else self.keys[0]
        return key, secret, datetime.now(UTC) + timedelta(seconds=lasts)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def running_roles(*keys: tuple[str, str, float]) -> Iterator[Roles]:
    """A server that gives these keys."""
    roles = Roles(*keys)
    try:
        yield roles
    finally:
        roles.close()
