"""Gather lists for sendmmsg: outer IP header, row of tunnel headers, head and body of each packet."""

from __future__ import annotations

import socket
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column
from tunnelbridge.linux import libc, options
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.wire import ipv4

LIMIT: Final = 1024  # messages per sendmmsg (UIO_MAXIOV)

Headers = npt.NDArray[np.void]
"""Shape (LIMIT,): outer IP headers."""


class Messages:
    """The mmsghdr and iovec arrays for one sendmmsg, made once and patched per batch."""

    def __init__(self) -> None:
        self._vectors = np.zeros((LIMIT, 4), libc.IOVEC)
        self._headers = np.zeros(LIMIT, libc.MMSGHDR)
        step = self._vectors.strides[0]
        self._headers["iov"] = libc.address(self._vectors) + np.arange(LIMIT) * step

    def at(self, position: int) -> int:
        """Return the memory address of one message."""
        return libc.address(self._headers) + position * self._headers.itemsize

    def fill(
        self,
        rows: npt.NDArray[np.uint8],
        index: Column,
        skip: int,
        batch: Batch,
        part: slice,
        outer: Headers | None = None,
    ) -> None:
        """Point the messages at the ``part`` of a batch; ``index`` names each packet's row.

        ``outer`` are outer IP headers to go in front, LIMIT of them, whose length is filled in.
        """
        count = part.stop - part.start
        vectors = self._vectors[:count]
        last = 0
        if outer is not None:
            outer["total_length"][:count] = (
                outer.itemsize + rows.shape[1] + batch.total_length[part]
            )
            vectors["base"][:, 0] = libc.address(outer) + np.arange(count) * outer.itemsize
            vectors["length"][:, 0] = outer.itemsize
            last = 1
        vectors["base"][:, last] = libc.address(rows) + skip + index[part] * rows.strides[0]
        vectors["length"][:, last] = rows.shape[1] - skip
        last += 1
        if batch.head_start is not None and batch.head_length is not None:
            vectors["base"][:, last] = libc.address(batch.head) + batch.head_start[part]
            vectors["length"][:, last] = batch.head_length[part]
            last += 1
        vectors["base"][:, last] = libc.address(batch.memory) + batch.start[part]
        vectors["length"][:, last] = batch.length[part]
        self._headers["iovlen"] = last + 1


def ipv4_headers(endpoint: Endpoint, sock: socket.socket) -> Headers:
    """Return LIMIT outer headers as the kernel makes them (DF clear).

    It fills in id and checksum, and the source where that is 0 (raw(7)).
    """
    headers = np.zeros(LIMIT, ipv4.HEADER)
    headers["version_ihl"] = 0x45
    headers["tos"] = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS)
    headers["ttl"] = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
    headers["protocol"] = endpoint.protocol
    headers["source"] = _number(endpoint.local or "0.0.0.0")
    headers["destination"] = _number(options.resolve(endpoint.remote)[1][0])
    return headers


def _number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address))
