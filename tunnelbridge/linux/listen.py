"""Open the sockets tunnels arrive at.

UDP tunnels are received through one raw socket rather than UDP sockets: it serves all ports with
one queue, and a wrong outer checksum does not lose the packet.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence
from typing import Final

import numpy as np

from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, options, privileges

SO_TIMESTAMPNS: Final = 35
RECEIVE_BUFFER: Final = 64 << 20
ACCEPT: Final = 0x40000  # octets a filter lets through: all of them
PROTOCOLS: Final = {
    4: "IPv4-in-IP", 17: "UDP", 41: "IPv6-in-IP", 47: "GRE", 97: "EtherIP", 137: "MPLS-in-IP",
}  # fmt: skip
"""IP protocol numbers as an error names them."""


def open_raw(
    family: int, protocol: int, address: str | None = None, ports: Sequence[int] | None = None
) -> socket.socket:
    """Open a raw socket for a protocol, for all addresses or one of this host's.

    With ``ports`` (UDP) only those destination ports are received; an empty list receives nothing.
    The kernel reassembles outer fragments before they reach the socket or its filter.
    Raises UserError: no CAP_NET_RAW, or ``address`` is not this host's.
    """
    try:
        sock = socket.socket(family, socket.SOCK_RAW, protocol)
    except PermissionError:
        name = PROTOCOLS.get(protocol, f"IP protocol {protocol}")
        raise privileges.missing("CAP_NET_RAW", f"receiving {name} tunnels") from None
    with contextlib.ExitStack() as opening:
        opening.enter_context(sock)
        # A raw socket receives from its first moment: refuse all, throw away, then choose.
        libc.attach_filter(sock.fileno(), options.REFUSE_ALL)
        _bind(sock, address, 0)
        _set_options(sock)
        _drain(sock)
        libc.attach_filter(sock.fileno(), _accept_ports(family, ports))
        opening.pop_all()
    return sock


def open_udp(family: int, port: int, address: str | None = None) -> socket.socket:
    """Open a plain UDP socket, for who has no CAP_NET_RAW.

    Raises UserError: the port is in use or privileged, or ``address`` is not this host's.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    with contextlib.ExitStack() as opening:
        opening.enter_context(sock)
        _set_options(sock)
        _bind(sock, address, port)
        opening.pop_all()
    return sock


def quiet(family: int, port: int, address: str | None = None) -> socket.socket | None:
    """Hold a UDP port without receiving, so that no ICMP port unreachable answers its senders.

    For the time a raw socket receives for that port. None if somebody else holds the port: then
    nothing is answered either. Raises UserError as :func:`open_udp` does.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    with contextlib.ExitStack() as opening:
        opening.enter_context(sock)
        libc.attach_filter(sock.fileno(), options.REFUSE_ALL)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's minimum
        if not _try_bind(sock, address, port):
            return None
        opening.pop_all()
    return sock


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    options.enlarge_receive_buffer(sock, RECEIVE_BUFFER)


def _bind(sock: socket.socket, address: str | None, port: int) -> None:
    if not _try_bind(sock, address, port):
        raise UserError(
            f"UDP port {port} is in use (another program or a kernel tunnel device listens on it; "
            f"`ss -lunp sport = :{port}` shows programs, `ip -d link` devices)"
        )


def _try_bind(sock: socket.socket, address: str | None, port: int) -> bool:
    """Bind; False if the port is in use, UserError for the user's other mistakes."""
    if sock.family == socket.AF_INET6 and sock.type == socket.SOCK_DGRAM:  # beside IPv4's socket
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    chosen = address or ("0.0.0.0" if sock.family == socket.AF_INET else "::")
    family, resolved = options.resolve(chosen, port)
    if family != sock.family:
        raise UserError(
            f"{chosen} is not an IPv{4 if sock.family == socket.AF_INET else 6} address"
        )
    try:
        sock.bind(resolved)
    except PermissionError:
        raise privileges.missing("CAP_NET_BIND_SERVICE", f"listening on UDP port {port}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
            raise UserError(f"{chosen} is not an address of this host") from None
        raise
    return True


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(1, socket.MSG_DONTWAIT)


def _accept_ports(family: int, ports: Sequence[int] | None) -> libc.Program:
    """Return the filter for raw sockets: some UDP destination ports, or everything."""
    accept = (0x06, 0, 0, ACCEPT)  # ret
    if ports is None:
        return np.array([accept], libc.BPF_INSTRUCTION)
    code = (
        [(0xB1, 0, 0, 0), (0x48, 0, 0, 2)]  # ldx 4*([0]&0xf); ldh [x+2]: the IPv4 header is there
        if family == socket.AF_INET
        else [(0x28, 0, 0, 2)]  # ldh [2]: raw IPv6 data starts at the UDP header
    )
    for port in ports:
        code += [(0x15, 0, 1, port), accept]  # jeq, else skip one
    return np.array([*code, (0x06, 0, 0, 0)], libc.BPF_INSTRUCTION)
