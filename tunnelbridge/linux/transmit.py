"""Send clones: header rows and packets from us, the outer IP header from the kernel or from us.

One sendmmsg takes up to 1024 messages; each is gathered from a row of outer headers, the packet's
head and its body, so nothing is copied in user space. Two kinds of socket offer the same ``send``:
:class:`RawTunnelSocket` (any protocol, needs CAP_NET_RAW) and :class:`UdpTunnelSocket` (no
privilege at all, sixteen source ports instead of one per flow).

The kernel makes the outer IP header, and fragments. Where a whole batch fits the link, IPv4 headers of
our own (IP_HDRINCL) spare it its fragment queue and the socket's lock: about a tenth of the CPU time
of a clone.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column
from tunnelbridge.linux import options
from tunnelbridge.linux.endpoint import Endpoint, connected, icmp_errors
from tunnelbridge.linux.messages import LIMIT, Headers, Messages, ipv4_headers
from tunnelbridge.linux.pushing import PATIENCE, Push, Sent
from tunnelbridge.wire import ipv4

UDP_HEADER: Final = 8
LARGEST_BUFFER: Final = 1 << 30  # the kernel doubles it and keeps an int

# linux/in.h and linux/in6.h; the socket module lacks most of them
IP_HDRINCL: Final = 3
IP_MTU: Final = 14
IPV6_CHECKSUM: Final = 7
IPV6_MTU: Final = 24


class TunnelSocket:
    """What both kinds share: prepared messages, the path MTU."""

    def __init__(self, endpoint: Endpoint, sockets: list[socket.socket], skip: int) -> None:
        self.endpoint = endpoint
        self.marked = all(map(options.is_marked, sockets))
        """Whether the kernel let us mark the packets, so that captures can refuse them."""
        self._sockets = sockets
        self._skip = skip
        self._patience = PATIENCE
        self._messages = Messages()
        self._outer: Headers | None = None
        """Outer IP headers to send, None where the kernel makes them."""

    def never_wait(self, octets: int) -> Self:
        """Drop what does not fit into send buffers of ``octets``, rather than wait for room.

        For who has more to do than to send. The kernel counts what a packet costs it, at least
        some 800 octets (sock_alloc_send_pskb, net/core/sock.c), and allows twice what was asked for.
        """
        self._patience = 0.0
        for sock in self._sockets:
            options.enlarge_send_buffer(sock, min(octets, LARGEST_BUFFER))
        return self

    def send(self, rows: npt.NDArray[np.uint8], batch: Batch) -> Sent:
        """Send each packet behind its row of outer headers.

        ``rows`` are uint8 (n, H), what follows the outer IP header; they may be part of a wider or
        longer matrix as long as a row's octets are adjacent. ``batch`` holds the n inner packets.
        Waits at most 100 ms for room in the send queue (see :meth:`never_wait`); never raises for
        what the network does.
        """
        if rows.dtype != np.uint8 or rows.ndim != 2 or len(rows) != len(batch):
            raise ValueError(f"rows must be uint8 ({len(batch)}, H), not {rows.dtype} {rows.shape}")
        push = Push(self._patience)
        self._prepare(rows, batch)
        for sock, index in self._shares(rows):
            if len(index):
                share = batch if len(index) == len(batch) else batch.select(index)
                self._send_share(sock, rows, index, share, push)
                push.sent.unreachable += icmp_errors(sock)
        return push.sent

    def path_mtu(self) -> int:
        """Return the route's MTU towards the remote now, learned path MTUs included.

        A new socket asks each time, because a connected one keeps what it knew.
        Raises UserError where there is no route.
        """
        family, _ = options.resolve(self.endpoint.remote)
        with connected(self.endpoint, family, socket.SOCK_DGRAM, 0, port=9) as probe:
            if family == socket.AF_INET:
                return probe.getsockopt(socket.IPPROTO_IP, IP_MTU)
            return probe.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, rows: npt.NDArray[np.uint8], batch: Batch) -> None:
        """Choose how a batch goes, before any of it is sent."""

    def _shares(self, rows: npt.NDArray[np.uint8]) -> Iterator[tuple[socket.socket, Column]]:
        """Yield each socket with the positions of the packets it sends."""
        yield self._sockets[0], np.arange(len(rows))

    def _send_share(
        self,
        sock: socket.socket,
        rows: npt.NDArray[np.uint8],
        index: Column,
        batch: Batch,
        push: Push,
    ) -> None:
        lengths = batch.total_length
        for first in range(0, len(batch), LIMIT):
            part = slice(first, min(first + LIMIT, len(batch)))
            self._messages.fill(rows, index, self._skip, batch, part, self._outer)
            done, cause = push.send(sock, self._messages, lengths[part])
            if cause:
                push.sent.fail(cause, len(batch) - first - done)
                return


class RawTunnelSocket(TunnelSocket):
    """One raw socket for an endpoint's protocol; rows start behind the outer IP header.

    UDP over IPv4 carries the rows' checksum as it is; over IPv6 the kernel fills it in. Over IPv4 a
    second socket (IP_HDRINCL) sends the batches in which nothing needs fragments.
    Raises UserError: no CAP_NET_RAW, no route, or ``local`` is not an address of this host.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        family, _ = options.resolve(endpoint.remote)
        headers = None
        with contextlib.ExitStack() as opening:
            sock = connected(endpoint, family, socket.SOCK_RAW, endpoint.protocol)
            sockets = [opening.enter_context(sock)]
            if family == socket.AF_INET:
                whole = connected(endpoint, family, socket.SOCK_RAW, endpoint.protocol)
                sockets.append(opening.enter_context(whole))
                whole.setsockopt(socket.IPPROTO_IP, IP_HDRINCL, 1)
                headers = ipv4_headers(endpoint, sock)
            elif family == socket.AF_INET6 and endpoint.protocol == socket.IPPROTO_UDP:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, 6)
            opening.pop_all()
        super().__init__(endpoint, sockets, skip=0)
        self._headers = headers

    def send(self, rows: npt.NDArray[np.uint8], batch: Batch) -> Sent:
        """Send each packet behind its row of outer headers (see :class:`TunnelSocket`)."""
        sent = super().send(rows, batch)
        if self._outer is not None and "message-too-long" in sent.errors:
            self._reconnect()
        return sent

    def _prepare(self, rows: npt.NDArray[np.uint8], batch: Batch) -> None:
        """Let the second socket send what needs no fragments."""
        self._outer = self._headers if len(batch) and self._room(rows, batch) >= 0 else None

    def _room(self, rows: npt.NDArray[np.uint8], batch: Batch) -> int:
        """Return how far the longest packet stays below the MTU, negative if it is above it."""
        if self._headers is None:
            return -1
        try:
            mtu: int = self._sockets[1].getsockopt(socket.IPPROTO_IP, IP_MTU)
        except OSError:  # the route it was connected by is gone
            self._reconnect()
            return -1
        longest: int = ipv4.HEADER.itemsize + rows.shape[1] + int(batch.total_length.max())
        return mtu - longest

    def _reconnect(self) -> None:
        """Ask for the route again; a connected socket keeps the device it knew."""
        with contextlib.suppress(OSError):
            self._sockets[1].connect(options.resolve(self.endpoint.remote)[1])

    def _shares(self, rows: npt.NDArray[np.uint8]) -> Iterator[tuple[socket.socket, Column]]:
        yield self._sockets[0 if self._outer is None else 1], np.arange(len(rows))


class UdpTunnelSocket(TunnelSocket):
    """Plain UDP sockets, one per source port, for who has no privilege.

    The rows' UDP headers are not sent: the kernel makes its own. The row's source port picks the
    socket (``port % sockets``), so packets of one flow keep their order and their source port.
    Raises UserError: no route, or ``local`` is not an address of this host.
    """

    def __init__(self, endpoint: Endpoint, port: int, sockets: int = 16) -> None:
        family, _ = options.resolve(endpoint.remote)
        opened: list[socket.socket] = []
        with contextlib.ExitStack() as opening:
            for _ in range(sockets):
                sock = connected(endpoint, family, socket.SOCK_DGRAM, 0, port, ephemeral=True)
                opened.append(opening.enter_context(sock))
            opening.pop_all()
        super().__init__(endpoint, opened, skip=UDP_HEADER)

    @property
    def source_ports(self) -> list[int]:
        """The UDP source port of each socket."""
        return [int(sock.getsockname()[1]) for sock in self._sockets]

    def _shares(self, rows: npt.NDArray[np.uint8]) -> Iterator[tuple[socket.socket, Column]]:
        if not len(rows):
            return
        source_port = rows[:, 0].astype(np.int64) << 8 | rows[:, 1]
        choice = source_port % len(self._sockets)
        for number, sock in enumerate(self._sockets):
            yield sock, np.flatnonzero(choice == number)
