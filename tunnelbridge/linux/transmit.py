"""Send clones: the kernel builds the outer IP header, we give it header rows and packets.

One sendmmsg takes up to 1024 messages; each is gathered from a row of outer headers, the packet's
head and its body, so nothing is copied in user space. Two kinds of socket offer the same ``send``:
:class:`RawTunnelSocket` (any protocol, needs CAP_NET_RAW) and :class:`UdpTunnelSocket` (no
privilege at all, sixteen source ports instead of one per flow).

Where a whole batch fits the link, IPv4 headers of our own (IP_HDRINCL) spare the kernel its fragment
queue and the socket's lock: about a tenth of the CPU time of a clone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column
from tunnelbridge.linux import libc, options
from tunnelbridge.linux.endpoint import NO_ROUTE, Endpoint, connected, icmp_errors
from tunnelbridge.linux.messages import LIMIT, Headers, Messages, ipv4_headers
from tunnelbridge.wire import ipv4

UDP_HEADER: Final = 8
PATIENCE: Final = 0.1  # seconds one send() may wait for a full queue
ATTEMPTS_AFTER_ICMP: Final = 8

# linux/in.h and linux/in6.h; the socket module lacks most of them
IP_HDRINCL: Final = 3
IP_MTU: Final = 14
IPV6_CHECKSUM: Final = 7
IPV6_MTU: Final = 24

_CAUSES: Final = {
    errno.ENETUNREACH: "no-route",
    errno.EHOSTUNREACH: "host-unreachable",
    errno.ENETDOWN: "network-down",
    errno.EMSGSIZE: "message-too-long",
    errno.EPERM: "not-permitted",
    errno.EACCES: "not-permitted",
    errno.ENOBUFS: "no-buffers",
}


@dataclass(slots=True)
class Sent:
    """What became of one batch: ``packets`` + all ``errors`` = its length.

    ``octets`` counts inner octets of sent packets. ``errors`` maps a cause to packets.
    ``unreachable`` counts ICMP errors that earlier packets brought back; they cost no packet here.
    """

    packets: int = 0
    octets: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    unreachable: int = 0

    def fail(self, cause: str, packets: int) -> None:
        """Count packets that were not sent."""
        self.errors[cause] = self.errors.get(cause, 0) + packets


class TunnelSocket:
    """What both kinds share: prepared messages, the error rules, the path MTU."""

    def __init__(self, endpoint: Endpoint, sockets: list[socket.socket], skip: int) -> None:
        self.endpoint = endpoint
        self.marked = all(map(options.is_marked, sockets))
        """Whether the kernel let us mark the packets, so that captures can refuse them."""
        self._sockets = sockets
        self._skip = skip
        self._messages = Messages()
        self._outer: Headers | None = None
        """Outer IP headers to send, None where the kernel makes them."""
        self._patience = PATIENCE

    def send(self, rows: npt.NDArray[np.uint8], batch: Batch) -> Sent:
        """Send each packet behind its row of outer headers.

        ``rows`` are uint8 (n, H), what follows the outer IP header; they may be part of a wider or
        longer matrix as long as a row's octets are adjacent. ``batch`` holds the n inner packets.
        Waits at most 100 ms for room in the send queue; never raises for what the network does.
        """
        if rows.dtype != np.uint8 or rows.ndim != 2 or len(rows) != len(batch):
            raise ValueError(f"rows must be uint8 ({len(batch)}, H), not {rows.dtype} {rows.shape}")
        sent = Sent()
        self._patience = PATIENCE
        self._prepare(rows, batch)
        for sock, index in self._shares(rows):
            if len(index):
                share = batch if len(index) == len(batch) else batch.select(index)
                self._send_share(sock, rows, index, share, sent)
                sent.unreachable += icmp_errors(sock)
        return sent

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
        sent: Sent,
    ) -> None:
        lengths = batch.total_length
        for first in range(0, len(batch), LIMIT):
            part = slice(first, min(first + LIMIT, len(batch)))
            self._messages.fill(rows, index, self._skip, batch, part, self._outer)
            done, cause = self._push(sock, lengths[part], sent)
            if cause:
                sent.fail(cause, len(batch) - first - done)
                return

    def _push(self, sock: socket.socket, lengths: Column, sent: Sent) -> tuple[int, str]:
        """Send the prepared messages; return how many are settled and why the rest must fail."""
        fd, position, attempts = sock.fileno(), 0, 0
        while position < len(lengths):
            left = len(lengths) - position
            try:
                done = libc.sendmmsg(fd, self._messages.at(position), left, socket.MSG_DONTWAIT)
            except InterruptedError:
                continue
            except OSError as error:
                if _is_full(sock, error):
                    if self._wait(sock, sent):
                        continue
                    return position, "queue-full"
                # An ICMP error for an earlier packet is reported once by the next send; if there
                # was none in the queue, a second failure is this packet's own.
                returned = icmp_errors(sock)
                sent.unreachable += returned
                attempts += 1
                if attempts < (ATTEMPTS_AFTER_ICMP if returned else 2):
                    continue
                if error.errno in NO_ROUTE:
                    return position, _cause(error)
                sent.fail(_cause(error), 1)
                position, attempts = position + 1, 0
                continue
            sent.packets += done
            sent.octets += int(lengths[position : position + done].sum())
            position, attempts = position + done, 0
            if done < left:  # sendmmsg swallowed the error; an ICMP error is still in the queue
                sent.unreachable += icmp_errors(sock)
        return position, ""

    def _wait(self, sock: socket.socket, sent: Sent) -> bool:
        """Wait until ``sock`` takes more; False when this send()'s patience is used up."""
        if self._patience <= 0:
            return False
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        began = time.monotonic()
        ready = poller.poll(self._patience * 1000)
        self._patience -= time.monotonic() - began
        if ready and ready[0][1] & select.POLLERR:  # a waiting ICMP error would end every poll
            sent.unreachable += icmp_errors(sock)
        return bool(ready)


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


def _is_full(sock: socket.socket, error: OSError) -> bool:
    """Tell a full send buffer from a queue that drops.

    A UDP socket says EAGAIN. A raw socket says ENOBUFS for both (ip_append_data takes up to twice
    SO_SNDBUF), but with a full buffer it is not writable.
    """
    if error.errno != errno.ENOBUFS:
        return error.errno == errno.EAGAIN
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    return not any(events & select.POLLOUT for _, events in poller.poll(0))


def _cause(error: OSError) -> str:
    """Return the slug errors are counted under."""
    code = error.errno or 0
    return _CAUSES.get(code) or errno.errorcode.get(code, os.strerror(code)).lower().replace(
        "_", "-"
    )
