"""Socket options that sending and receiving share; numbers from linux/in.h, in6.h, if.h, socket.h."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

import numpy as np

from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc

SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
IFF_UP: Final = 1  # of an interface's flags, linux/if.h

REFUSE_ALL: Final[libc.Program] = np.array([(0x06, 0, 0, 0)], libc.BPF_INSTRUCTION)
"""Classic BPF ``ret #0``: the socket receives nothing."""


def resolve(literal: str, port: int = 0) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Return family and socket address of an IP literal (``fe80::1%eth0`` keeps its scope).

    Raises UserError: ``literal`` is no IP address, or its scope is no interface.
    """
    try:
        found = socket.getaddrinfo(
            literal, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
    except (socket.gaierror, UnicodeError):
        raise UserError(f"{literal!r} is not an IP address") from None
    return found[0][0], found[0][4]


def mark(sock: socket.socket) -> None:
    """Put TUNNEL_MARK on what ``sock`` sends, if the kernel lets us (CAP_NET_ADMIN)."""
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, libc.SO_MARK, libc.TUNNEL_MARK)


def is_marked(sock: socket.socket) -> bool:
    """Tell whether ``sock`` carries TUNNEL_MARK."""
    return sock.getsockopt(socket.SOL_SOCKET, libc.SO_MARK) == libc.TUNNEL_MARK


def enlarge_send_buffer(sock: socket.socket, octets: int) -> None:
    """Set the send buffer beyond net.core.wmem_max if allowed, else up to it."""
    _enlarge(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, octets)


def enlarge_receive_buffer(sock: socket.socket, octets: int) -> None:
    """Set the receive buffer beyond net.core.rmem_max if allowed, else up to it."""
    _enlarge(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, octets)


def _enlarge(sock: socket.socket, forced: int, plain: int, octets: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, plain, octets)
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, forced, octets)
