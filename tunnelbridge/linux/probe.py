"""Ask whether a pool member is there: ICMP echo, a heartbeat, or the way to it.

Members never answer on the tunnel's own port, so that says nothing. Echo and heartbeat have one
non-blocking socket per address family for all members, marked like tunnels, so that no capture
mirrors the probes. An answer counts if it carries the nonce of a probe that waits, and comes from
the address which that probe went to.

A heartbeat is a UDP datagram of 16 to 64 octets: ``tbhb``, version 1, kind (1 asks, 2 answers), two
octets zero, a nonce of 8 octets; what follows is padding. The answer repeats the question in all but
the kind, and is itself never answered, so that no two hosts can be made to talk for ever.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from typing import Any, Final

import numpy as np
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, netlink, options, privileges

HEARTBEAT: Final = struct.Struct("!4sBBH8s")
MAGIC: Final = b"tbhb"
VERSION: Final = 1
ASKS: Final = 1
ANSWERS: Final = 2
LONGEST_HEARTBEAT: Final = 64

ECHO: Final = struct.Struct("!BBHHH8s")
ECHO_REQUEST: Final = {socket.AF_INET: 8, socket.AF_INET6: 128}  # RFC 792, RFC 4443 section 4.1
ECHO_REPLY: Final = {socket.AF_INET: 0, socket.AF_INET6: 129}
AT_ONCE: Final = 64
"""Datagrams per wake-up, so that a flood keeps nobody waiting."""
DISCARD: Final = 9  # RFC 863
UNRESOLVED: Final = 0x01 | 0x20
"""NUD_INCOMPLETE and NUD_FAILED of linux/neighbour.h."""


class Probe:
    """What both kinds share: who was asked, and whether it is they who answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._asked: dict[bytes, tuple[Any, ...]] = {}
        sock.setblocking(False)
        options.mark(sock)

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``add_reader``."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def send(self, literal: str, port: int = 0) -> bytes:
        """Ask ``literal``, an IP address of the probe's family; return the nonce of the question.

        Raises OSError: it cannot be sent now.
        """
        _, address = options.resolve(literal, port)
        nonce = secrets.token_bytes(8)
        self._sock.sendto(self._question(nonce), address)
        self._asked[nonce] = address
        return nonce

    def forget(self, nonce: bytes) -> None:
        """Take no answer to this question any more."""
        self._asked.pop(nonce, None)

    def receive(self) -> list[bytes]:
        """Return the nonces of questions that were answered; each is told once."""
        answered = []
        with contextlib.suppress(OSError):  # BlockingIOError, or an ICMP error that came back
            for _ in range(AT_ONCE):
                octets, address = self._sock.recvfrom(2048)
                nonce = self._answer(octets)
                if nonce is not None and self._asked.get(nonce) == address:
                    self.forget(nonce)
                    answered.append(nonce)
        return answered

    def _question(self, nonce: bytes) -> bytes:
        raise NotImplementedError

    def _answer(self, octets: bytes) -> bytes | None:
        """Return the nonce of a well-formed answer."""
        raise NotImplementedError


class IcmpProbe(Probe):
    """ICMP or ICMPv6 echo: a raw socket, or a ping socket where the kernel allows one without rights.

    Raises UserError: neither is allowed.
    """

    def __init__(self, family: socket.AddressFamily) -> None:
        sock, self._is_raw = _icmp_socket(family)
        super().__init__(sock)
        self._family = family
        self._identifier = 1 + secrets.randbelow(0xFFFF)  # a ping socket's is the kernel's choice
        self._sequence = 0
        if self._is_raw:
            libc.attach_filter(sock.fileno(), _replies_to(family, self._identifier))

    def _question(self, nonce: bytes) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFF
        fields = (ECHO_REQUEST[self._family], 0)
        rest = (self._identifier, self._sequence, nonce)
        return ECHO.pack(*fields, _checksum(ECHO.pack(*fields, 0, *rest)), *rest)

    def _answer(self, octets: bytes) -> bytes | None:
        start = 0
        if self._is_raw and self._family == socket.AF_INET:  # only there the IP header comes along
            start = (octets[0] & 0x0F) * 4
        if len(octets) < start + ECHO.size:
            return None
        kind, code, _, identifier, _, nonce = ECHO.unpack_from(octets, start)
        ours = not self._is_raw or identifier == self._identifier
        return nonce if ours and (kind, code) == (ECHO_REPLY[self._family], 0) else None


class HeartbeatProbe(Probe):
    """Heartbeats over UDP, which ``collector listen --heartbeat`` answers."""

    def __init__(self, family: socket.AddressFamily) -> None:
        super().__init__(socket.socket(family, socket.SOCK_DGRAM))

    def _question(self, nonce: bytes) -> bytes:
        return HEARTBEAT.pack(MAGIC, VERSION, ASKS, 0, nonce)

    def _answer(self, octets: bytes) -> bytes | None:
        if not is_heartbeat(octets, ANSWERS):
            return None
        nonce: bytes = HEARTBEAT.unpack_from(octets)[-1]
        return nonce


def is_heartbeat(octets: bytes, kind: int) -> bool:
    """Tell whether a datagram is a heartbeat that asks, or one that answers."""
    if not HEARTBEAT.size <= len(octets) <= LONGEST_HEARTBEAT:
        return False
    return bool(HEARTBEAT.unpack_from(octets)[:4] == (MAGIC, VERSION, kind, 0))


def answer_to(octets: bytes) -> bytes:
    """Return the answer to a heartbeat that asks."""
    return octets[:5] + bytes([ANSWERS]) + octets[6:]


class RouteProbe:
    """Whether there is a route, and its next hop answers to ARP or neighbour solicitation.

    Nothing is sent while that is known; an unresolved next hop is made to be looked up again with a
    datagram to the member's discard port, because no clones do so once a member counts as down.
    """

    def check(self, literal: str) -> str:
        """Return why ``literal`` cannot be reached, or "". Blocks for some milliseconds."""
        try:
            route = netlink.route(literal)
        except UserError as error:
            return str(error)
        next_hop = route.gateway or literal.partition("%")[0]
        if not _state(route.index, next_hop) & UNRESOLVED:
            return ""
        _discard(literal)
        return f"next hop {next_hop} on {route.interface} does not answer"


def _state(index: int, next_hop: str) -> int:
    """Return a neighbour's NUD state; 0 if there is none, as where nothing is to be resolved."""
    with IPRoute() as link:
        try:
            (found,) = link.neigh("get", dst=next_hop, ifindex=index)
        except NetlinkError:  # no entry; or the interface is gone, which the next look will tell
            return 0
        return int(found["state"])


def _discard(literal: str) -> None:
    family, address = options.resolve(literal, DISCARD)
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        options.mark(sock)
        sock.sendto(b"", address)


def _icmp_socket(family: socket.AddressFamily) -> tuple[socket.socket, bool]:
    """Return a socket for ICMP of a family, and whether it is a raw one."""
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    with contextlib.suppress(PermissionError):
        return socket.socket(family, socket.SOCK_RAW, protocol), True
    try:
        return socket.socket(family, socket.SOCK_DGRAM, protocol), False
    except PermissionError:
        raise privileges.missing(
            "CAP_NET_RAW", "a health check by ICMP (or the group in net.ipv4.ping_group_range)"
        ) from None


def _replies_to(family: socket.AddressFamily, identifier: int) -> libc.Program:
    """Return the filter of a raw socket: echo replies with our identifier, no other program's."""
    code = [
        (0x30, 0, 0, 0), (0x15, 0, 3, 129),  # ldb [0]; jeq ICMPv6 echo reply
        (0x28, 0, 0, 4), (0x15, 0, 1, identifier),  # ldh [4]; jeq
        (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0),
    ]  # fmt: skip
    if family == socket.AF_INET:  # behind the IP header
        code = [
            (0xB1, 0, 0, 0), (0x50, 0, 0, 0), (0x15, 0, 3, 0),  # ldx 4*([0]&0xf); ldb [x]; jeq
            (0x48, 0, 0, 4), (0x15, 0, 1, identifier),  # ldh [x+4]; jeq
            (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0),
        ]  # fmt: skip
    return np.array(code, libc.BPF_INSTRUCTION)


def _checksum(octets: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of octets."""
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
