"""Open the sockets that send to a tunnel's far end, with its outer IP header set on them."""

from __future__ import annotations

import errno
import random
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final

from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, options, privileges

SEND_BUFFER: Final = 4 << 20
ERROR_QUEUE: Final = 64 << 10  # room for ICMP errors that wait to be counted

# linux/in.h and linux/in6.h; the socket module lacks most of them
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IPV6_MTU_DISCOVER: Final = 23
IPV6_RECVERR: Final = 25
PMTUDISC_DONT: Final = 0

NO_ROUTE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV, errno.ENXIO}
)
"""Errors that the next packet to the same remote would meet as well."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a tunnel's packets go and how their outer IP header looks.

    ``remote`` and ``local`` are IP literals; ``protocol`` is 47 (GRE) or 17 (UDP); ``ttl`` None
    means 64. DF is clear: the kernel may fragment the outer packet.
    """

    remote: str
    protocol: int
    local: str | None = None
    ttl: int | None = None
    dscp: int = 0


def connected(
    endpoint: Endpoint,
    family: int,
    kind: int,
    protocol: int,
    port: int = 0,
    *,
    ephemeral: bool = False,
) -> socket.socket:
    """Open a socket that sends to the endpoint and receives nothing, with all its options set."""
    try:
        sock = socket.socket(family, kind, protocol)
    except PermissionError:
        raise privileges.missing("CAP_NET_RAW", f"a tunnel to {endpoint.remote}") from None
    try:
        libc.attach_filter(sock.fileno(), options.REFUSE_ALL)
        options.mark(sock)
        _set_header_options(sock, endpoint)
        _bind(sock, endpoint, ephemeral)
        _connect(sock, endpoint, port)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_header_options(sock: socket.socket, endpoint: Endpoint) -> None:
    """Set what the kernel writes into the outer IP header, and the buffers."""
    ttl = 64 if endpoint.ttl is None else endpoint.ttl
    if sock.family == socket.AF_INET:
        level, chosen = socket.IPPROTO_IP, [
            (socket.IP_TTL, ttl),
            (socket.IP_TOS, endpoint.dscp << 2),
            (IP_MTU_DISCOVER, PMTUDISC_DONT),
            (IP_RECVERR, 1),  # also what makes a packet that a qdisc dropped come back as ENOBUFS
        ]  # fmt: skip
    else:
        level, chosen = socket.IPPROTO_IPV6, [
            (socket.IPV6_UNICAST_HOPS, ttl),
            (socket.IPV6_TCLASS, endpoint.dscp << 2),
            (IPV6_MTU_DISCOVER, PMTUDISC_DONT),
            (IPV6_RECVERR, 1),
        ]  # fmt: skip
    for option, value in chosen:
        sock.setsockopt(level, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ERROR_QUEUE)
    options.enlarge_send_buffer(sock, SEND_BUFFER)


def _bind(sock: socket.socket, endpoint: Endpoint, ephemeral: bool) -> None:
    if endpoint.local is None and not ephemeral:
        return
    local = endpoint.local or ("0.0.0.0" if sock.family == socket.AF_INET else "::")
    family, address = options.resolve(local)
    if family != sock.family:
        raise UserError(f"{local} and {endpoint.remote} are not of the same address family")
    ports = random.sample(range(49152, 65536), 256) if ephemeral else [0]
    for port in ports:
        try:
            sock.bind((address[0], port, *address[2:]))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise UserError(f"{local} is not an address of this host") from None
        return
    raise UserError(f"no free UDP port in 49152–65535 on {local}")


def _connect(sock: socket.socket, endpoint: Endpoint, port: int) -> None:
    _, remote = options.resolve(endpoint.remote, port)
    try:
        sock.connect(remote)
    except OSError as error:
        if error.errno in NO_ROUTE:
            raise UserError(f"no route to {endpoint.remote}") from None
        raise UserError(f"cannot send to {endpoint.remote}: {error.strerror}") from None


def icmp_errors(sock: socket.socket) -> int:
    """Empty the socket's error queue and count the ICMP errors in it (ip(7), IP_RECVERR)."""
    count = 0
    while True:
        try:
            control: list[Any] = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)[1]
        except BlockingIOError:
            return count
        for _, _, octets in control:
            # too long is a path MTU that was learned or known, not an unreachable remote
            count += int.from_bytes(octets[:4], sys.byteorder) != errno.EMSGSIZE  # ee_errno
