"""A TCP proxy before a real S3 server that counts requests and makes them fail as networks and servers do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

DRIP_SECONDS = 0.3

Fault = Literal["refuse", "hang", "stall", "cut", "half", "drip", "lose", "late"] | int


@dataclass(frozen=True)
class Request:
    """A request without its body; `number` counts all requests from 0."""

    number: int
    method: str
    path: str
    head: bytes = b""

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "POST", "DELETE")


class Proxy:
    """Passes on every request and its answer unchanged, unless `fault` says otherwise for it.

    Faults: "refuse" closes the connection, "hang" never answers, "stall" asks for the body and takes none of it,
    "cut" breaks off in the middle of the answer, "drip" sends it byte by byte with pauses, "half" sends half an
    answer as if it were whole, "lose" lets the server do what is asked and loses the answer, "late" refuses with
    status 403 and lets the server do it in `deliver`; a number is answered with that HTTP status. `after` is called
    when the server has answered a request, before its answer goes back.
    """

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._server = (str(parts.hostname), int(parts.port or 80))
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.after: Callable[[Request], None] = lambda request: None
        self.body = b""
        self._late: list[bytes] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._listener.close()

    def deliver(self) -> None:
        """Let the server do what came late, and wait until it has."""
        for request in self._late:
            with socket.create_connection(self._server) as server:
                server.sendall(request)
                answers = server.makefile("rb")
                while (answer := _head(answers)).startswith(b"HTTP/1.1 100"):
                    pass
                assert answer.startswith(b"HTTP/1.1 200"), answer
        self._late.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError), socket.create_connection(self._server) as server:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            incoming, answers = client.makefile("rb"), server.makefile("rb")
            while head := _head(incoming):
                if not self._pass_on(head, client, server, incoming, answers):
                    return

    def _pass_on(self, head: bytes, client, server, incoming, answers) -> bool:  # type: ignore[no-untyped-def]
        """Return one request and its answer; whether the connection goes on."""
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        with self._lock:
            request = Request(len(self.requests), method, path, head)
            self.requests.append(request)
        fault = self.fault(request)
        if fault == "refuse":
            return False
        if fault == "hang":
            self._closed.wait()
            return False
        waits = _header(head, b"expect") == b"100-continue"
        if fault == "stall":
            if waits:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._closed.wait()
            return False
        if fault == "late" or isinstance(fault, int):
            if waits:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            sent = [head]
            _body(head, incoming, sent.append)
            if fault == "late":
                self._late.append(b"".join(sent))
                fault = 403
            body = b"" if method == "HEAD" else self.body
            client.sendall(f"HTTP/1.1 {fault} Fault\r\nContent-Length: {len(self.body)}\r\n\r\n".encode() + body)
            return True
        server.sendall(head)
        if waits:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        _body(head, incoming, server.sendall)
        answer = _head(answers)
        while answer.startswith(b"HTTP/1.1 100"):
            answer = _head(answers)
        if not answer:
            return False
        received: list[bytes] = []
        if method != "HEAD" and answer.split(b" ", 2)[1] not in (b"204", b"304"):
            _body(answer, answers, received.append)
        self.after(request)
        if fault == "lose":
            return False
        data = b"".join(received)
        if fault == "drip":
            client.sendall(answer)
            for byte in data:
                if self._closed.wait(DRIP_SECONDS):
                    break
                client.sendall(bytes([byte]))
            return False
        if fault == "half":
            answer = answer.replace(b"Content-Length: %d" % len(data), b"Content-Length: %d" % (len(data) // 2))
            data = data[: len(data) // 2]
        client.sendall(answer + (data[: len(data) // 2] if fault == "cut" else data))
        return fault != "cut"


def _head(stream) -> bytes:  # type: ignore[no-untyped-def]
    """Return a message's first lines up to the empty one; empty where the connection has ended."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().lower()
    return b""


def _body(head: bytes, stream, take: Callable[[bytes], object]) -> None:  # type: ignore[no-untyped-def]
    """Hand a message's body on, piece by piece, as it came."""
    if _header(head, b"transfer-encoding") == b"chunked":
        while True:
            line = stream.readline()
            take(line)
            size = int(line.split(b";")[0], 16)
            data = stream.read(size + 2)
            take(data)
            if not size:
                return
    left = int(_header(head, b"content-length") or 0)
    while left:
        data = stream.read(min(left, 1 << 16))
        if not data:
            raise EOFError
        take(data)
        left -= len(data)
