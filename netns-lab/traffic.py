"""What the client and the host say to each other: real HTTP over the kernel's TCP, and marks.

A mark is a datagram with a text of its own from the client to the host. Marks tell where in a
capture the interesting part begins and ends, and that everything before has been captured.

Both sides stay on one processor. A veth pair has a queue for each: with two, the frames of one
connection overtake each other, and not in the same way for everyone who looks at the interface.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from netlab import inside
from process import LabError

PORT, MARK_PORT = 80, 9
INDEX = b"<h1>The host behind the mirrored interface</h1>\n"


def content(octets: int, seed: int = 1) -> bytes:
    """Return octets that compress badly and are the same each time."""
    return random.Random(seed).randbytes(octets)


def stay_on_one_processor() -> None:
    """Keep the calling thread, and threads it starts, on the first processor it may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Site(ThreadingHTTPServer):
    """A small web site over IPv4 and IPv6: ``/``, ``/file/OCTETS``, and a POST that is hashed."""

    address_family = socket.AF_INET6
    daemon_threads = True


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self._answer(content(int(name)) if name.isdigit() else INDEX)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(hashlib.sha256(body).hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""


class Host:
    """The HTTP server and the receiver of marks, in the host's namespace."""

    def __init__(self, namespace: str) -> None:
        self.site = inside(namespace, Site, ("::", PORT), _Page)
        # never read: it is there so that marks raise no "port unreachable"
        self.marks = inside(namespace, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.marks.bind(("0.0.0.0", MARK_PORT))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        stay_on_one_processor()
        self.site.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        """End the server and close its sockets, which would keep the namespace alive."""
        self.site.shutdown()
        self._thread.join()
        self.site.server_close()
        self.marks.close()


def get(host: str, octets: int) -> str:
    """Fetch a file and compare it; return the request line. Call it inside the client."""
    path = f"/file/{octets}" if octets else "/"
    _expect(_exchange(host, "GET", path), content(octets) if octets else INDEX, path)
    return f"GET {path} HTTP/1.1"


def post(host: str, octets: int) -> str:
    """Send a file and compare what the host has received; return the request line."""
    body = content(octets, seed=2)
    _expect(
        _exchange(host, "POST", "/upload", body),
        hashlib.sha256(body).hexdigest().encode(),
        "/upload",
    )
    return "POST /upload HTTP/1.1"


def mark(host: str, text: str) -> bytes:
    """Send a mark; return the octets to look for. Call it inside the client."""
    stay_on_one_processor()
    octets = f"tunnelbridge mark: {text};".encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(octets, (host, MARK_PORT))
    return octets


def _exchange(host: str, method: str, path: str, body: bytes | None = None) -> bytes:
    stay_on_one_processor()
    connection = HTTPConnection(host, PORT, timeout=10)
    try:
        connection.request(method, path, body)
        return connection.getresponse().read()
    finally:
        connection.close()


def _expect(got: bytes, expected: bytes, path: str) -> None:
    if got != expected:
        raise LabError(f"{path}: the other side has other octets ({len(got)}, not {len(expected)})")
