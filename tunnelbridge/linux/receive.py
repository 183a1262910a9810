"""Receive datagrams in batches: one recvmmsg fills up to a slab of them."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import INBOUND, Batch, Column
from tunnelbridge.linux import libc
from tunnelbridge.linux.listen import SO_TIMESTAMPNS
from tunnelbridge.linux.slab import Slab

SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")
_MEMINFO_DROPS: Final = 8  # SK_MEMINFO_DROPS (linux/sock_diag.h)

_NAME: Final = np.dtype(
    [("family", "=u2"), ("_port", "V2"), ("v4", "V4"), ("v6", "V16"), ("_", "V4")]
)
"""sockaddr_in and sockaddr_in6 laid over each other (28 octets)."""
_CONTROL: Final = np.dtype(
    [
        ("length", "=u8"),
        ("level", "=i4"),
        ("type", "=i4"),
        ("seconds", "=i8"),
        ("nanoseconds", "=i8"),
    ]
)
"""One cmsghdr with the timespec of SCM_TIMESTAMPNS."""
_MAPPED: Final = np.frombuffer(bytes(10) + b"\xff\xff", np.uint8)


@dataclass(slots=True)
class Datagrams:
    """A batch over a slab: ``source`` is uint8 (n, 16), IPv4 addresses as ``::ffff:a.b.c.d``.

    Valid until the slab is released.
    """

    batch: Batch
    source: npt.NDArray[np.uint8]
    slab: Slab


class Receiver:
    """Receives what arrives at ``sock``; closes it in the end.

    A datagram starts as the socket hands it over: with the IPv4 header on a raw IPv4 socket, behind
    the IPv6 headers on a raw IPv6 socket, behind the UDP header on a UDP socket.
    """

    def __init__(self, sock: socket.socket, slots: int = 1024) -> None:
        self._sock = sock
        self._headers = np.zeros(slots, libc.MMSGHDR)
        self._names = np.zeros(slots, _NAME)
        self._controls = np.zeros(slots, _CONTROL)
        numbers = np.arange(slots)
        self._headers["name"] = libc.address(self._names) + numbers * _NAME.itemsize
        self._headers["control"] = libc.address(self._controls) + numbers * _CONTROL.itemsize
        self._headers["iovlen"] = 2
        self._drops = self._last_drops = 0

    def receive(self, slab: Slab, now: int = 0) -> Datagrams | None:
        """Receive what is queued, at most a slab full; None when nothing is.

        ``now`` (ns) is the timestamp of datagrams for which the kernel gave none.
        """
        slots = min(slab.slots, len(self._headers))
        headers = self._headers[:slots]
        headers["iov"] = libc.address(slab.vectors) + np.arange(slots) * slab.vectors.strides[0]
        headers["namelen"] = _NAME.itemsize
        headers["controllen"] = _CONTROL.itemsize
        try:
            count = libc.recvmmsg(
                self._sock.fileno(), libc.address(headers), slots, socket.MSG_DONTWAIT
            )
        except (BlockingIOError, InterruptedError):
            return None
        length = headers["length"][:count].astype(np.int64)
        batch = Batch(
            memory=slab.memory,
            start=slab.settle(length),
            length=length,
            wire_length=length.copy(),
            timestamp=self._timestamps(count, now),
            direction=np.full(count, INBOUND, np.uint8),
        )
        return Datagrams(batch, self._sources(count), slab)

    def drops(self) -> int:
        """Return how many datagrams the kernel dropped at this socket since it was opened.

        The kernel's counter has 32 bits; ask often enough that it wraps at most once in between.
        """
        info = self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
        current = _MEMINFO.unpack(info)[_MEMINFO_DROPS]
        self._drops += (current - self._last_drops) % 2**32
        self._last_drops = current
        return self._drops

    def fileno(self) -> int:
        """Return the socket's file descriptor, readable when datagrams wait."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _timestamps(self, count: int, now: int) -> Column:
        control = self._controls[:count]
        stamped = (
            (self._headers["controllen"][:count] >= _CONTROL.itemsize)
            & (control["level"] == socket.SOL_SOCKET)
            & (control["type"] == SO_TIMESTAMPNS)
        )
        return np.where(stamped, control["seconds"] * 10**9 + control["nanoseconds"], now)

    def _sources(self, count: int) -> npt.NDArray[np.uint8]:
        names = self._names[:count]
        source = np.empty((count, 16), np.uint8)
        source[:, :12] = _MAPPED
        octets = names.view(np.uint8).reshape(count, _NAME.itemsize)
        source[:, 12:] = octets[:, 4:8]
        v6 = names["family"] == socket.AF_INET6
        source[v6] = octets[v6, 8:24]
        return source
