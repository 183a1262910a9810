"""Answer the heartbeats of senders that want to know whether this collector is there.

A heartbeat is a UDP datagram of 16 to 64 octets:

====== ====== ==========================================================
offset octets
====== ====== ==========================================================
0      4      ``tbhb``
4      1      version, 1
5      1      kind: 1 asks, 2 answers
6      2      zero
8      8      nonce, which the sender chose
16     0–48   padding
====== ====== ==========================================================

The answer is the question with the kind changed: never longer, and never answered itself. Nothing else
is answered, nor is what comes faster than :data:`RATE`, from a source that is not allowed, or to a
broadcast or multicast address.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

import numpy as np

from collector.allow import MAPPED, AllowList
from tunnelbridge.errors import UsageError
from tunnelbridge.linux import options
from tunnelbridge.linux.listen import open_udp
from tunnelbridge.linux.probe import ASKS, LONGEST_HEARTBEAT, answer_to, is_heartbeat

RATE: Final = 1000
"""Answers per second, and at once after a pause."""
AT_ONCE: Final = 64
"""Datagrams per wake-up, so that a flood keeps nobody waiting."""

RECEIVE_BUFFER: Final = 1 << 16
CONTROL: Final = 128
"""Octets of control messages: the local address and a time stamp."""

# linux/in.h, linux/in6.h and linux/ipv6.h: the address a datagram came to is where its answer is from
IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
PKTINFO: Final = struct.Struct("=i4s4s")  # interface, local address, destination in the header
PKTINFO6: Final = struct.Struct("=16si")


class Heartbeat:
    """The sockets of ``--heartbeat [ADDR:]PORT``; without ADDR, IPv4 and IPv6.

    Raises UsageError: ``where`` is no such thing; UserError: the port cannot be had.
    """

    def __init__(
        self, where: str, allow: AllowList, clock: Callable[[], float] = monotonic
    ) -> None:
        self.answered = 0
        self.ignored = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._allow = allow
        self._clock = clock
        self._tokens, self._filled = float(RATE), clock()
        host, port = parse_where(where)
        self.sockets: list[socket.socket] = []
        try:
            for family in _families(host):
                self.sockets.append(_open(family, port, host))
        except BaseException:
            self.close()
            raise

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer from now on, whenever ``loop`` sees a question."""
        for sock in self.sockets:
            loop.add_reader(sock.fileno(), self.on_readable, sock)
        self._loop = loop

    def close(self) -> None:
        """Close the sockets."""
        for sock in self.sockets:
            if self._loop is not None:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self.sockets.clear()

    def on_readable(self, sock: socket.socket) -> None:
        """Answer what waits in one of the sockets, or a part of it."""
        with contextlib.suppress(OSError):  # BlockingIOError at the end
            for _ in range(AT_ONCE):
                # one octet more than a heartbeat may have, so that longer ones are seen to be
                octets, control, _, source = sock.recvmsg(LONGEST_HEARTBEAT + 1, CONTROL)
                local = _local(control)
                if local is None or not self._is_wanted(octets, source[0]):
                    self.ignored += 1
                    continue
                self.answered += 1
                with contextlib.suppress(OSError):  # no way back now: the sender asks again
                    sock.sendmsg([answer_to(octets)], [local], socket.MSG_DONTWAIT, source)

    def _is_wanted(self, octets: bytes, source: str) -> bool:
        return is_heartbeat(octets, ASKS) and self._allows(source) and self._take_token()

    def _allows(self, source: str) -> bool:
        if not self._allow:
            return True
        address = ipaddress.ip_address(source.partition("%")[0])
        packed = (MAPPED if address.version == 4 else b"") + address.packed
        return bool(self._allow.allows(np.frombuffer(packed, np.uint8)[None])[0])

    def _take_token(self) -> bool:
        now = self._clock()
        self._tokens = min(RATE, self._tokens + (now - self._filled) * RATE)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def parse_where(text: str) -> tuple[str | None, int]:
    """Return address and port of ``[ADDR:]PORT``, IPv6 in brackets; raises UsageError."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
            raise ValueError
        if colon and ipaddress.ip_address(bare).version != (4 if bare == host else 6):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--heartbeat {text}: expected [ADDR:]PORT, as 8998, 192.0.2.1:8998 or [::1]:8998"
        ) from None
    return bare or None, int(port)


def _families(host: str | None) -> list[int]:
    if host is not None:
        return [options.resolve(host)[0]]
    with contextlib.suppress(OSError):  # a kernel may not speak IPv6
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        return [socket.AF_INET, socket.AF_INET6]
    return [socket.AF_INET]


def _open(family: int, port: int, host: str | None) -> socket.socket:
    sock = open_udp(family, port, host)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    options.mark(sock)
    return sock


def _local(control: Sequence[tuple[int, int, bytes]]) -> Any:
    """Return the control message that makes the answer come from the address that was asked.

    None if that is a broadcast or multicast address.
    """
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, local, destination = PKTINFO.unpack(data)
            if local == destination:
                return level, kind, PKTINFO.pack(0, local, bytes(4))
        if (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
            local, _ = PKTINFO6.unpack(data)
            if local[0] != 0xFF:
                return level, kind, PKTINFO6.pack(local, 0)
    return None
