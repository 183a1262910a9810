"""Follow the kernel's connection tracking: which connections have their source translated.

A netlink socket gets an event when a connection begins and when it ends
(linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c). The kernel sends the
first one when it confirms the connection, which is before its first packet leaves the host: whoever
captured a packet and then reads the feed knows its connection. Other updates are not asked for,
because tuples never change, and a TCP connection has five of them.

The messages are walked with struct, about 10 µs each; pyroute2 needs more than ten times that.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from tunnelbridge.connections import CONNECTION, ECHO_SERVICE, NO_PORT, Changes, Connections
from tunnelbridge.errors import UserError
from tunnelbridge.linux import privileges
from tunnelbridge.linux.namespace import in_thread

NETLINK_NETFILTER: Final = 12
SUBSYSTEM: Final = 1  # NFNL_SUBSYS_CTNETLINK, the high octet of a message's type
NEW, GET, DELETE = 0, 1, 2
GROUPS: Final = 0x1 | 0x4  # NF_NETLINK_CONNTRACK_NEW and _DESTROY (nfnetlink_compat.h)
DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_MULTI: Final = 2
"""Of the messages of a dump; events do not have it."""
SO_RCVBUFFORCE: Final = 33
QUEUE: Final = 8 << 20
"""Octets of the receive queue; an event takes about 1 KiB of it."""
PIECES: Final = 4
"""Pieces of a dump, of about a hundred connections, that one read takes at most."""

TUPLE_ORIGINAL, TUPLE_REPLY, STATUS = 1, 2, 3
IP, PROTO = 1, 2
V4_SOURCE, V4_DESTINATION, V6_SOURCE, V6_DESTINATION = 1, 2, 3, 4
NUMBER, SOURCE_PORT, DESTINATION_PORT = 1, 2, 3
SRC_NAT: Final = 1 << 4  # IPS_SRC_NAT (nf_conntrack_common.h)
DYING: Final = 1 << 9  # IPS_DYING
_ECHOES: Final = {1: (4, 5, 8), 58: (7, 8, 128)}
"""By protocol: attributes of identifier and type, and the type of an echo request."""
_HAS_PORTS: Final = frozenset((6, 17, 33, 132, 136))

_MESSAGE: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK: Final = 0x3FFF  # NLA_TYPE_MASK
_FAMILY: Final = 4  # octets of struct nfgenmsg
_EVENTS: Final = Path("/proc/sys/net/netfilter/nf_conntrack_events")

Attributes = dict[int, bytes]
Record = tuple[Any, ...]
"""The values of a CONNECTION."""


@dataclass(slots=True)
class _Told:
    """What one read tells, by the octets of the answers' tuple."""

    known: dict[bytes, Record] = field(default_factory=dict)
    gone: dict[bytes, Record] = field(default_factory=dict)


class ConntrackFeed:
    """Tells which source-NATed connections there are in a network namespace, and no longer.

    Needs CAP_NET_ADMIN. The first reads tell what exists already, a piece each, until one is
    ``complete``. Since Linux 5.19 the kernel tells the end of a connection only if somebody listened
    when it began; the older ones go with the next :meth:`refresh`.
    """

    def __init__(self, namespace: str | None = None) -> None:
        """Open the feed of a namespace named under /run/netns, or of the calling thread's own."""
        self._sock = in_thread(_open, namespace)
        self._memory = bytearray(1 << 16)
        self._is_dumping = True
        self._is_stale = False
        self.lost = 0
        """How many times events were lost because the queue was full."""

    def read(self) -> Changes:
        """Return what has changed since the last read; never waits.

        Everything that was in the queue when it was called is told. After a loss of events all
        connections are told once more, a piece each read.
        """
        told = _Told()
        complete = restarted = False
        pieces = 0
        while pieces < PIECES:
            try:
                count = self._sock.recv_into(self._memory)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                self._is_stale = True
                continue
            dumped, done = _read_messages(bytes(self._memory[:count]), told)
            pieces += dumped
            complete |= done
        if complete:
            self._is_dumping = False
        # the queue has been empty by now, which is when the kernel stops dropping events
        if self._is_stale and not self._is_dumping:
            _ask(self._sock)
            self._is_dumping = restarted = True
            self._is_stale = False
        return Changes(_column(told.known), _column(told.gone), complete, restarted)

    def refresh(self) -> None:
        """Have all connections told once more, to be rid of those whose end was not told."""
        self._is_stale = True

    def fileno(self) -> int:
        """Return the socket's file descriptor, readable when something has changed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open() -> socket.socket:
    """Open the socket, subscribe and ask for what exists."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    except OSError as error:
        raise _not_available(error.strerror) from None
    try:
        sock.setblocking(False)
        _enlarge(sock)
        sock.bind((0, GROUPS))
        _ask(sock)
        _check(sock)
    except PermissionError:
        sock.close()
        raise privileges.missing("CAP_NET_ADMIN", "following connection tracking") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _enlarge(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE)
    except PermissionError:  # bind will say so
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE)


def _ask(sock: socket.socket) -> None:
    """Ask for all connections of all families."""
    size = _MESSAGE.size + _FAMILY
    sock.send(_MESSAGE.pack(size, SUBSYSTEM << 8 | GET, DUMP, 0, 0) + bytes(_FAMILY))


def _check(sock: socket.socket) -> None:
    """Raise UserError if the kernel cannot tell, or has been told not to."""
    answer = sock.recv(_MESSAGE.size + 4, socket.MSG_PEEK)
    if _MESSAGE.unpack_from(answer)[1] == NLMSG_ERROR:
        raise _not_available(os.strerror(-struct.unpack_from("=i", answer, _MESSAGE.size)[0]))
    if _EVENTS.exists() and _EVENTS.read_text().strip() == "0":
        raise UserError(
            "the kernel is set to tell nothing of connections:"
            " sudo sysctl net.netfilter.nf_conntrack_events=1"
        )


def _not_available(reason: str | None) -> UserError:
    return UserError(
        f"the kernel's connection tracking cannot be followed ({reason}):"
        " sudo modprobe nf_conntrack_netlink"
    )


def _read_messages(memory: bytes, told: _Told) -> tuple[bool, bool]:
    """Note what one datagram tells.

    Returns whether it is a piece of a dump, and whether the last one.
    """
    at = 0
    dumped = done = False
    while at + _MESSAGE.size <= len(memory):
        size, kind, flags, _, _ = _MESSAGE.unpack_from(memory, at)
        if size < _MESSAGE.size:
            break
        if kind in (NLMSG_DONE, NLMSG_ERROR):
            dumped = done = True
        elif kind >> 8 == SUBSYSTEM:
            dumped |= bool(flags & NLM_F_MULTI)
            body = memory[at + _MESSAGE.size + _FAMILY : at + size]
            _note(_attributes(body), kind & 0xFF == DELETE, told)
        at += size + 3 & ~3
    return dumped, done


def _note(found: Attributes, is_gone: bool, told: _Told) -> None:
    """Note what one message tells of a connection, if that is source-NATed."""
    status = int.from_bytes(found.get(STATUS, b""))
    if not status & SRC_NAT:
        return
    record = _record(found)
    if record is None:
        return
    key = found[TUPLE_REPLY]
    if is_gone:
        told.gone[key] = record
    elif not status & DYING:  # the end of one that is dumped while it dies is told by itself
        told.known[key] = record
        told.gone.pop(key, None)


def _record(found: Attributes) -> Record | None:
    """Return the values of a CONNECTION; None for what cannot be told by the packets' headers."""
    try:
        original, reply = _attributes(found[TUPLE_ORIGINAL]), _attributes(found[TUPLE_REPLY])
        addresses, answer = _attributes(original[IP]), _attributes(reply[IP])
        ports, answer_ports = _attributes(original[PROTO]), _attributes(reply[PROTO])
        protocol = ports[NUMBER][0]
        if V4_SOURCE in addresses:
            family, source, destination = 4, V4_SOURCE, V4_DESTINATION
        else:
            family, source, destination = 6, V6_SOURCE, V6_DESTINATION
        server, nat, client = answer[source], answer[destination], addresses[source]
        if protocol in _HAS_PORTS:
            of_server, of_nat = answer_ports[SOURCE_PORT], answer_ports[DESTINATION_PORT]
            numbers = _number(of_server), _number(of_nat), _number(ports[SOURCE_PORT])
        elif protocol in _ECHOES:
            identifier, kind, request = _ECHOES[protocol]
            if ports[kind][0] != request:
                return None
            numbers = ECHO_SERVICE, _number(answer_ports[identifier]), _number(ports[identifier])
        else:
            numbers = NO_PORT, NO_PORT, NO_PORT
    except (KeyError, IndexError):  # an attribute that a kernel we do not know leaves out
        return None
    return family, protocol, *numbers, _halves(server), _halves(nat), _halves(client)


def _number(octets: bytes) -> int:
    return int.from_bytes(octets)


def _halves(address: bytes) -> tuple[int, int]:
    return divmod(int.from_bytes(address), 2**64)


def _attributes(octets: bytes) -> Attributes:
    """Return the attributes of a message, or of one that is nested, by their types."""
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(octets):
        size, kind = _ATTRIBUTE.unpack_from(octets, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = octets[at + _ATTRIBUTE.size : at + size]
        at += size + 3 & ~3
    return found


def _column(records: dict[bytes, Record]) -> Connections:
    return np.array(list(records.values()), CONNECTION)
