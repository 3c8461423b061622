"""A network between a user and a cluster that can be cut."""

import contextlib
import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Relay:
    """Passes connections on until it is cut; while it is, each is closed as soon as it is made."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._target = (parts.hostname, parts.port)
        self._open: set[socket.socket] = set()
        self._is_cut = False

    def cut(self) -> None:
        self._is_cut = True
        for sock in [*self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def connect(self, client: socket.socket) -> None:
        """Passes bytes both ways until one side ends."""
        if self._is_cut:
            return
        with socket.create_connection(self._target) as server:
            self._open |= {client, server}
            try:
                _pass_bytes(client, server)
            finally:
                self._open -= {client, server}


def _pass_bytes(client: socket.socket, server: socket.socket) -> None:
    with selectors.DefaultSelector() as ready:
        ready.register(client, selectors.EVENT_READ, server)
        ready.register(server, selectors.EVENT_READ, client)
        while True:
            for key, _ in ready.select():
                data = key.fileobj.recv(2**16)
                if not data:
                    return
                key.data.sendall(data)


@contextmanager
def relay(address: str, ip: str = "127.0.0.1") -> Iterator[tuple[Relay, str]]:
    """A relay to a URL's host and port, and the URL, with `ip`, that leads through it."""
    through = Relay(address)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                through.connect(self.request)

    with socketserver.ThreadingTCPServer((ip, 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield through, f"http://{ip}:{server.server_address[1]}"
        through.cut()
        server.shutdown()
