"""The sockets of a live server: where it listens, and how dead readers are found out."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from typing import Final

from tunnelbridge.errors import UsageError, UserError

HOST: Final = "127.0.0.1"
PORT: Final = 57012
USER_TIMEOUT: Final = 120_000
"""Milliseconds without a sign of life after which the kernel calls a connection dead."""
KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, USER_TIMEOUT),
    (socket.TCP_NODELAY, 1),
)
_WHERE: Final = re.compile(r"(\[.*\]|[^:]*):([^:]*)")


def parse_where(text: str) -> tuple[str, int]:
    """Return address and port of ``HOST:PORT``, ``HOST``, ``PORT`` or nothing; raises UsageError."""
    match = _WHERE.fullmatch(text)
    host, port = match.groups() if match else (text.strip("[]"), "")
    if text.isdecimal():
        host, port = "", text
    host = host.strip("[]") or HOST
    if host == "localhost":
        host = HOST
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(
            f"--serve {text}: {host} is no IP address, as in 127.0.0.1:{PORT}"
        ) from None
    if port and not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise UsageError(f"--serve {text}: {port} is not a TCP port")
    return host, int(port) if port else PORT


def open_server(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises UserError where the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen()
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise UserError(f"cannot serve on {where(host, port)}: {error.strerror}") from None
    return sock


def accept(server: socket.socket) -> tuple[socket.socket, str]:
    """Return the next reader's socket, non-blocking, and its name; raises OSError."""
    sock, address = server.accept()
    sock.setblocking(False)
    with suppress(OSError):  # gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock, where(*address[:2])


def is_loopback(host: str) -> bool:
    """Tell whether only this host reaches an address."""
    return ipaddress.ip_address(host).is_loopback


def where(host: str, port: int) -> str:
    """Return how an address and a port are written."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
