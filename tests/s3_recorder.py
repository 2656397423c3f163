"""A proxy before an S3 server that notes what is asked of it, in the words of IAM."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Request(NamedTuple):
    """One permission that a request needs.

    Attributes:
        path: "bucket" or "bucket/key".
        prefix: Of a listing; None elsewhere and where a listing has none.
    """

    action: str
    path: str
    prefix: str | None = None


def permissions(method: str, target: str, body: bytes) -> list[Request]:
    """Return what an S3 request needs, by AWS's table of actions."""
    parts = urlsplit(target)
    path, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)
    if "/" not in path.rstrip("/"):
        path = path.rstrip("/")
        if method == "POST" and "delete" in query:
            keys = re.findall(rb"<Key>(.*?)</Key>", body)
            return [Request("s3:DeleteObject", f"{path}/{key.decode()}") for key in keys]
        if method in ("GET", "HEAD") and not query.keys() - {
            *("list-type", "prefix", "delimiter", "max-keys", "continuation-token", "start-after", "encoding-type"),
            *("marker", "fetch-owner", "x-id"),
        }:
            return [Request("s3:ListBucket", path, query.get("prefix", [None])[0])]
        if method == "GET" and "uploads" in query:
            return [Request("s3:ListBucketMultipartUploads", path)]
        return [Request(f"{method} {parts.query}", path)]
    if method == "DELETE":
        return [Request("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", path)]
    return [Request("s3:GetObject" if method in ("GET", "HEAD") else "s3:PutObject", path)]


class Recorder:
    """A running proxy.

    Attributes:
        endpoint: Its URL.
        requests: What was asked for so far, without repetition.
        headers: Of every request, in lower case, with its method.
        traffic: Permission, bytes of the body and bytes of the answer's of every request.
    """

    def __init__(self, endpoint: str) -> None:
        self.requests: set[Request] = set()
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.traffic: list[tuple[str, int, int]] = []
        upstream, recorder = urlsplit(endpoint).netloc, self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self._body()
                needed = permissions(self.command, self.path, body)
                recorder.requests.update(needed)
                sent = {name.lower(): value for name, value in self.headers.items()}
                recorder.headers.append((self.command, sent))
                connection = http.client.HTTPConnection(upstream, timeout=60)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # with the host that the client has signed
                    if name.lower() not in ("connection", "expect"):
                        connection.putheader(name, value)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                content = answer.read()
                recorder.traffic.append((needed[0].action, len(body), len(content)))
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            def _body(self) -> bytes:
                """As it comes, chunks with their lengths included."""
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while True:
                    line = self.rfile.readline()
                    length = int(line.split(b";")[0], 16)
                    body += line + self.rfile.read(length) + self.rfile.readline()
                    if length == 0:
                        return body

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def recorded(endpoint: str) -> Iterator[Recorder]:
    """A proxy before the server at `endpoint`."""
    recorder = Recorder(endpoint)
    try:
        yield recorder
    finally:
        recorder.close()
