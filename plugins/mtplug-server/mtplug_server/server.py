"""HTTP: connections, bodies, status codes, and a stop that leaves no request half answered."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Routes = dict[str, tuple[str, Callable[[bytes], Any]]]
"""By path: the method that it takes, and what makes a JSON value of a body or raises `Refused`."""


class Refused(Exception):
    """A request that is not granted.

    Args:
        status: of HTTP.
        why: one line, for the one who asks.
        headers: of the answer.
    """

    def __init__(self, status: int, why: str, **headers: str):
        super().__init__(why)
        self.status, self.headers = status, headers


class Server(ThreadingHTTPServer):
    """Answers each connection in a thread of its own. Its port is taken by `server_bind` and opened by `server_activate`.

    Args:
        address: host and port.
        max_body: bytes of a request's body.
        log: tell of each request on standard error, without its body.
    """

    request_queue_size = 128  # connections that come at once
    daemon_threads = True

    def __init__(self, address: tuple[str, int], max_body: int = 2**20, log: bool = False):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler, bind_and_activate=False)
        self.routes: Routes = {}
        self.max_body, self.log = max_body, log
        self._stopping = False
        self._begun = 0
        self._changed = threading.Condition()

    def server_bind(self) -> None:
        # HTTPServer's asks for the host's name, which may take seconds and is of no use here.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_port = self.socket.getsockname()[1]

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """A request that is answered before the server stops."""
        with self._changed:
            if self._stopping:
                raise Refused(503, "the server is being stopped", Connection="close")
            self._begun += 1
        try:
            yield
        finally:
            with self._changed:
                self._begun -= 1
                self._changed.notify()

    def finish(self) -> None:
        """Take no more requests, and return when all that have begun are answered."""
        with self._changed:
            self._stopping = True
        self.shutdown()
        self.server_close()
        with self._changed:
            self._changed.wait_for(lambda: not self._begun)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # that who asked has gone is no news
            print(f"mtplug-serve: {type(error).__name__} in a connection", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """The requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds in which nothing comes
    disable_nagle_algorithm = True

    def answer(self) -> None:
        begun = time.monotonic()
        try:
            body = self._body()
            with self.server.beginning():
                try:
                    self._reply(200, self._made(body))
                except Refused as refused:
                    self._refuse(refused)
        except Refused as refused:
            self._refuse(refused)
        if self.server.log:
            path = ascii(self.path.partition("?")[0])[1:-1]
            took = f"{1000 * (time.monotonic() - begun):.0f} ms"
            told = f"{self.client_address[0]} {self.command} {path} {self.status} {took}"
            print(f"{self.log_date_time_string()} {told}", file=sys.stderr)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def _made(self, body: bytes) -> Any:
        path, routes = self.path.partition("?")[0], self.server.routes
        if path not in routes:
            raise Refused(404, f"there is nothing at this path; there is {', '.join(routes)}")
        method, make = routes[path]
        if method != ("GET" if self.command == "HEAD" else self.command):
            raise Refused(405, f"{path} takes {method} only", Allow=method)
        try:
            return make(body)
        except Refused:
            raise
        except Exception as error:
            print(f"mtplug-serve: {type(error).__name__} at {path}", file=sys.stderr)
            raise Refused(500, f"{type(error).__name__} in the server") from None

    def _body(self) -> bytes:
        """All of it, whatever the request, so that the connection's next one is found behind it."""
        told = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            raise Refused(411, "a body needs a Content-Length", Connection="close")
        if not (told.isascii() and told.isdigit() and len(told) < 19):
            raise Refused(400, "Content-Length: no length", Connection="close")
        length, most = int(told), self.server.max_body
        if length > most:
            # Read all the same: a client that still writes does not see what it is answered.
            until = time.monotonic() + 10
            while length and time.monotonic() < until:
                length -= len(self.rfile.read(min(length, 2**16))) or length
            raise Refused(413, f"the body has more than {most:,} bytes", Connection="close")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the client has gone")
        return body

    def _refuse(self, refused: Refused) -> None:
        self._reply(refused.status, {"error": " ".join(str(refused).split())}, **refused.headers)

    def _reply(self, status: int, made: Any, **headers: str) -> None:
        # Halves of characters become the escapes that JSON has for them.
        data = json.dumps(made, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        self.status = status
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        for name, value in told.items():
            self.send_header(name, value)  # which heeds Connection: close
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, such as what is no HTTP."""
        self._refuse(Refused(code, message or HTTPStatus(code).phrase, Connection="close"))

    def version_string(self) -> str:
        return "mtplug-serve"

    def log_message(self, format: str, *args: Any) -> None:
        """`answer` logs, if anything does."""
