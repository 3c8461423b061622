"""A proxy before an S3 server that does to a share of requests what networks and stores under load do."""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.s3 import Account

PIECE_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of requests to which something happens; their sum is at most 1."""

    refused: float = 0.0
    """Answered with `status` and `code`; the server does not see them."""
    reset: float = 0.0
    """Their connection breaks before the server sees them."""
    lost: float = 0.0
    """Executed, and then the connection breaks in the place of the answer."""
    truncated: float = 0.0
    """Answered with half a body; an answer without a body stays whole."""
    delayed: float = 0.0
    """Held up for `delay_s` in the middle of their body."""
    delay_s: float = 0.5
    status: int = 503
    code: str = "SlowDown"
    matching: str = ""
    """A regular expression found in `METHOD /path?query` of the requests that all this is for."""
    at_most: int = 10**9
    """How many requests it happens to."""
    unconditional: bool = False
    """Takes the If-None-Match off, as stores do that ignore it; not for servers that check signatures."""


KINDS = ("refused", "reset", "lost", "truncated", "delayed")
HOP_HEADERS = ("connection", "keep-alive", "transfer-encoding", "expect")


class Proxy:
    """What happens to requests from now on, and what happened."""

    def __init__(self, upstream: Account, seed: int) -> None:
        self.upstream = upstream
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.account = upstream
        self.use(Faults())

    def use(self, faults: Faults) -> None:
        """Begins with other faults, and counts anew."""
        with self._lock:
            self.faults = faults
            self.happened: Counter[str] = Counter()

    def draw(self, request: str) -> str:
        """What happens to a request: one of `KINDS`, or nothing."""
        with self._lock:
            kind = self._kind() if re.search(self.faults.matching, request) else ""
            if kind and self.num_faults >= self.faults.at_most:
                kind = ""
            self.happened[kind] += 1
            return kind

    @property
    def num_faults(self) -> int:
        return self.happened.total() - self.happened[""]

    def _kind(self) -> str:
        drawn = self._random.random()
        for kind in KINDS:
            drawn -= getattr(self.faults, kind)
            if drawn < 0:
                return kind
        return ""


@contextmanager
def proxy(upstream: Account, *, seed: int = 0) -> Iterator[Proxy]:
    """A proxy on a free port, which lets everything pass until it is told otherwise."""
    relay = Proxy(upstream, seed)

    class Handler(_Handler):
        proxy = relay

    server = _Server(("127.0.0.1", 0), Handler)
    relay.account = replace(upstream, endpoint=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    block_on_close = False  # clients keep idle connections

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        self.close_request(request)  # without the polite end that would hide a reset

    def handle_error(self, request: object, client_address: object) -> None:
        """No traceback for each client that goes away."""


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else answers wait 40 ms
    proxy: Proxy

    def _relay(self) -> None:
        kind, faults = self.proxy.draw(f"{self.command} {self.path}"), self.proxy.faults
        if kind == "reset":
            return self._reset()
        if kind == "refused":
            self.rfile.read(self._num_body_bytes)
            return self._send(_refusal(faults))
        answer = self._ask(faults, delay_s=faults.delay_s if kind == "delayed" else 0.0)
        if kind == "lost":
            return self._reset()
        self._send(answer, truncated=kind == "truncated")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _relay  # noqa: N815

    @property
    def _num_body_bytes(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _ask(self, faults: Faults, *, delay_s: float) -> _Answer:
        """The server's answer to this request."""
        address = urlsplit(self.proxy.upstream.endpoint).netloc
        server = http.client.HTTPConnection(address, timeout=300)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_HEADERS and not (faults.unconditional and name.lower() == "if-none-match"):
                server.putheader(name, value)
        server.endheaders()
        try:
            self._pass_body(server, delay_s)
            answer = server.getresponse()
            return _Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            server.close()

    def _pass_body(self, server: http.client.HTTPConnection, delay_s: float) -> None:
        first = self._num_body_bytes // 2
        self._pass_bytes(server, first)
        time.sleep(delay_s)
        self._pass_bytes(server, self._num_body_bytes - first)

    def _pass_bytes(self, server: http.client.HTTPConnection, num_bytes: int) -> None:
        while num_bytes:
            piece = self.rfile.read(min(num_bytes, PIECE_BYTES))
            if not piece:
                raise ConnectionError("the client went away")
            server.send(piece)
            num_bytes -= len(piece)

    def _send(self, answer: _Answer, *, truncated: bool = False) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in (*HOP_HEADERS, "content-length"):
                self.send_header(name, value)
        length = dict(answer.headers).get("Content-Length") if self.command == "HEAD" else len(answer.body)
        if answer.status != 204:
            self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body
        self.wfile.write(body[: len(body) // 2] if truncated else body)
        self.close_connection = truncated

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def _refusal(faults: Faults) -> _Answer:
    body = f'<?xml version="1.0"?><Error><Code>{faults.code}</Code><Message>injected</Message></Error>'
    return _Answer(faults.status, [("Content-Type", "application/xml")], body.encode())
