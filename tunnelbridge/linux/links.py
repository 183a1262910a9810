"""Hear from the kernel when interfaces come, go, or change.

A plain netlink socket in a plain thread: what it needs of rtnetlink(7) is one header and one
attribute, and unlike an event loop's it tells when the kernel had to drop events (ENOBUFS).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

RTMGRP_LINK: Final = 1
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
NLM_F_REQUEST_DUMP: Final = 0x301
IFLA_IFNAME: Final = 3
IFF_UP: Final = 1
EVENT_BUFFER: Final = 1 << 20

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length, type


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """What an interface is now; ``up`` is the administrative state.

    A renamed interface is an event ``present=False`` under its old name, then one under its new.
    """

    name: str
    index: int
    present: bool
    up: bool


class LinkMonitor:
    """Calls ``callback`` with every link event, in a thread of its own.

    An event may repeat what is known already. The namespace is that of the thread which calls
    :meth:`start`; what happens after ``start`` has returned is not missed.
    """

    def __init__(self, callback: Callable[[LinkEvent], None]) -> None:
        self._callback = callback
        self._known: dict[int, LinkEvent] = {}
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the netlink socket and begin."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER)
        self._socket.bind((0, RTMGRP_LINK))
        self._wake = os.eventfd(0)
        self._known = _dump()
        self._thread = threading.Thread(target=self._run, name="link monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; no callback runs any more afterwards."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        os.eventfd_write(self._wake, 1)
        if thread is not threading.current_thread():
            thread.join()
        self._socket.close()
        os.close(self._wake)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while self._wake not in dict(poller.poll()):
            try:
                events = list(_events(self._socket.recv(1 << 16)))
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                events = self._missed()
            for event in events:
                self._tell(event)

    def _tell(self, event: LinkEvent) -> None:
        before = self._known.pop(event.index, None)
        if before and before.name != event.name:
            self._callback(LinkEvent(before.name, before.index, present=False, up=False))
        if event.present:
            self._known[event.index] = event
        self._callback(event)

    def _missed(self) -> list[LinkEvent]:
        """Return events that lead from what was known to what is, after the kernel dropped some."""
        now = _dump()
        gone = [
            LinkEvent(link.name, link.index, present=False, up=False)
            for link in self._known.values()
            if link.index not in now
        ]
        return [*gone, *now.values()]


def _dump() -> dict[int, LinkEvent]:
    """Return all interfaces by index."""
    request = _HEADER.pack(_HEADER.size + _LINK.size, RTM_GETLINK, NLM_F_REQUEST_DUMP, 1, 0)
    found: dict[int, LinkEvent] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(request + bytes(_LINK.size))
        while True:
            answer = netlink.recv(1 << 16)
            found |= {event.index: event for event in _events(answer)}
            if any(kind in (NLMSG_DONE, NLMSG_ERROR) for kind, _ in _messages(answer)):
                return found


def _events(octets: bytes) -> Iterator[LinkEvent]:
    """Yield the link events in what one read of a netlink socket returned."""
    for kind, body in _messages(octets):
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            family, _, index, flags, _ = _LINK.unpack_from(body)
            # AF_BRIDGE messages tell that a port joined or left, not that an interface did
            if family == socket.AF_UNSPEC:
                present = kind == RTM_NEWLINK
                yield LinkEvent(_name(body), index, present, present and bool(flags & IFF_UP))


def _messages(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each netlink message."""
    position = 0
    while position + _HEADER.size <= len(octets):
        length, kind, *_ = _HEADER.unpack_from(octets, position)
        yield kind, octets[position + _HEADER.size : position + length]
        position += _align(max(length, _HEADER.size))


def _name(body: bytes) -> str:
    position = _LINK.size
    while position + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, position)
        if kind == IFLA_IFNAME:
            value = body[position + _ATTRIBUTE.size : position + length]
            return value.rstrip(b"\0").decode(errors="replace")
        position += _align(max(length, _ATTRIBUTE.size))
    return ""


def _align(length: int) -> int:
    return (length + 3) & ~3
