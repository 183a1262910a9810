"""The client's own address behind source NAT: from the packet on the wire to what it was before.

A host that translates sources (nftables, iptables) knows each connection by two tuples: the original,
client C:c → V:v, and that of the answers, server S:s → P:p. On the server's side packets go P:p → S:s
and S:s → P:p; with the client's address put back they go C:c → S:s and S:s → C:c. Only the client's
address and port are restored: where the destination was translated too (V is not S), the server stays
as seen. Echo messages have an identifier in place of ports. What an ICMP error quotes stays as seen,
and so do fragments whose first fragment was not seen.

:class:`NatTable` is a set-associative table of one entry per connection, found from both directions:
the hash of a tuple is the same both ways round. Its size is fixed. When a set is full, the entry that
was learned first makes room.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets, zeros
from tunnelbridge.connections import CONNECTION, ECHO_SERVICE, Changes, Connections
from tunnelbridge.wire.five_tuple import FiveTuples
from tunnelbridge.wire.flow import Flows, mix
from tunnelbridge.wire.new_addresses import LEAVE, Addresses, NewAddresses
from tunnelbridge.wire.octets import load

Words = npt.NDArray[np.uint64]

ICMP, ICMPV6 = 1, 58
WAYS: Final = 8
GRACE: Final = 1_000_000_000
"""For how long (ns) a connection is known that is gone: packets wait in a ring before they come."""

_ECHO: Final = np.dtype([("type", "u1"), ("code", "u1"), ("_", "V2"), ("identifier", ">u2")])
_REQUEST: Final = np.zeros((256, 256), np.bool_)  # protocol, type
_REQUEST[ICMP, 8] = _REQUEST[ICMPV6, 128] = True
_REPLY: Final = np.zeros((256, 256), np.bool_)
_REPLY[ICMP, 0] = _REPLY[ICMPV6, 129] = True


def with_echoes(memory: Octets, flows: Flows, tuples: FiveTuples) -> FiveTuples:
    """Return the tuples with ports for echo requests and replies of ICMP and ICMPv6."""
    whole = flows.transport + _ECHO.itemsize <= flows.end
    if flows.first_fragment is not None:
        whole &= ~flows.fragment | flows.first_fragment
    chosen = np.flatnonzero(np.isin(tuples.protocol, (ICMP, ICMPV6)) & whole)
    if not chosen.size:
        return tuples
    record = load(memory, flows.transport[chosen], _ECHO)
    protocol, identifier = tuples.protocol[chosen], record["identifier"].astype(np.int64)
    source, destination = tuples.source_port.copy(), tuples.destination_port.copy()
    for kinds, asks, answers in ((_REQUEST, source, destination), (_REPLY, destination, source)):
        echo = kinds[protocol, record["type"]]
        asks[chosen[echo]] = identifier[echo]
        answers[chosen[echo]] = ECHO_SERVICE
    return replace(tuples, source_port=source, destination_port=destination)


class NatTable:
    """What clients' addresses are behind source NAT, for at most ``flows`` connections."""

    def __init__(self, flows: int = 1 << 18) -> None:
        """Make room for ``flows`` connections, rounded up to a power of two (at least 8)."""
        self._bits = max((flows - 1).bit_length() - 3, 0)
        shape = (1 << self._bits, WAYS)
        self._tags = np.zeros(shape, np.uint64)  # the hash, odd; 0 is a free place
        self._learned = np.zeros(shape, np.int64)
        self._connections = np.zeros(shape, CONNECTION)
        self._leaving: deque[tuple[int, int, Connections]] = deque()  # time, clock, which
        self._clock = self._restarted = 0
        self._count = 0
        self.evicted = 0
        """Connections that had to make room so far."""

    def __len__(self) -> int:
        """Return how many connections are known."""
        return self._count

    def apply(self, changes: Changes, now: int) -> None:
        """Learn and forget what has changed.

        ``now`` is the time in ns by any clock that does not go back. What is gone is forgotten after
        :data:`GRACE`: the kernel tells the end of a refused connection before its last packet is
        captured. One that comes again meanwhile stays.
        """
        while self._leaving and now - self._leaving[0][0] >= GRACE:
            _, clock, gone = self._leaving.popleft()
            self.forget(gone, clock)
        self.learn(changes.known)
        if len(changes.gone):
            self._leaving.append((now, self._clock, changes.gone))
        if changes.complete:
            outdated = (self._tags != 0) & (self._learned <= self._restarted)
            self._clear(np.flatnonzero(outdated))
        if changes.restarted:
            self._restarted = self._clock

    def learn(self, connections: Connections) -> None:
        """Remember connections; one that is known already is replaced."""
        if not len(connections):
            return
        tags = _hash_connections(connections)
        sets = self._sets(tags)
        self._clock += 1
        waiting = np.arange(len(connections))
        while waiting.size:  # each round takes one of every set, in order
            first = np.unique(sets[waiting], return_index=True)[1]
            self._put(connections, sets, tags, waiting[first])
            waiting = np.delete(waiting, first)

    def forget(self, connections: Connections, until: int | None = None) -> None:
        """Forget connections, unless learned after ``until``; those unknown are no matter."""
        if not len(connections):
            return
        tags = _hash_connections(connections)
        sets = self._sets(tags)
        same = self._tags[sets] == tags[:, None]
        if until is not None:
            same &= self._learned[sets] <= until
        row, way = np.nonzero(same)
        self._clear(np.unique(sets[row] * WAYS + way))

    def look_up(self, tuples: FiveTuples) -> NewAddresses:
        """Return the clients' addresses for the packets that have them translated.

        ``tuples`` as seen on the server's side, from :func:`with_echoes` if echo messages matter.
        """
        if not self._count:
            return _restored(tuples, zeros(0), self._connections[0, :0])
        tags = _hash(
            tuples.protocol,
            (tuples.source_high, tuples.source_low, tuples.source_port),
            (tuples.destination_high, tuples.destination_low, tuples.destination_port),
        )
        sets = self._sets(tags)
        same = self._tags[sets] == tags[:, None]
        rows = np.flatnonzero(same.any(axis=1))
        found = self._connections[sets[rows], same[rows].argmax(axis=1)]
        return _restored(tuples, rows, found)

    def _sets(self, tags: Words) -> Column:
        return (tags >> np.uint64(63 - self._bits) >> np.uint64(1)).astype(np.int64)

    def _put(self, connections: Connections, sets: Column, tags: Words, rows: Column) -> None:
        """Put these connections, each of another set, into its place."""
        into, tag = sets[rows], tags[rows]
        present = self._tags[into]
        same, free = present == tag[:, None], present == 0
        known, room = same.any(axis=1), free.any(axis=1)
        oldest = self._learned[into].argmin(axis=1)
        way = np.where(known, same.argmax(axis=1), np.where(room, free.argmax(axis=1), oldest))
        self._tags[into, way] = tag
        self._learned[into, way] = self._clock
        self._connections[into, way] = connections[rows]
        self._count += int((~known & room).sum())
        self.evicted += int((~known & ~room).sum())

    def _clear(self, places: Column) -> None:
        """Free these places, none of them named twice."""
        self._tags.reshape(-1)[places] = 0
        self._count -= len(places)


def _restored(tuples: FiveTuples, rows: Column, found: Connections) -> NewAddresses:
    """Return what the packets at ``rows`` get, if ``found`` are really their connections."""
    source = np.stack((tuples.source_high[rows], tuples.source_low[rows]), axis=1)
    destination = np.stack((tuples.destination_high[rows], tuples.destination_low[rows]), axis=1)
    ports = tuples.source_port[rows], tuples.destination_port[rows]
    belongs = (found["family"] == tuples.family[rows]) & (
        found["protocol"] == tuples.protocol[rows]
    )
    ends = (source, ports[0]), (destination, ports[1])
    answers = belongs & _are(found, "server", *ends[0]) & _are(found, "nat", *ends[1])
    asks = belongs & ~answers & _are(found, "nat", *ends[0]) & _are(found, "server", *ends[1])
    source[asks], destination[answers] = found["client"][asks], found["client"][answers]
    port = found["client_port"].astype(np.int64)
    echo = np.isin(found["protocol"], (ICMP, ICMPV6))
    kept = np.flatnonzero(answers | asks)
    return NewAddresses(
        rows=rows[kept],
        source=source[kept],
        destination=destination[kept],
        source_port=np.where(asks & ~echo, port, LEAVE)[kept],
        destination_port=np.where(answers & ~echo, port, LEAVE)[kept],
        identifier=np.where(echo, port, LEAVE)[kept],
    )


def _are(found: Connections, end: str, address: Addresses, port: Column) -> Flags:
    same: Flags = (found[end] == address).all(axis=1) & (found[f"{end}_port"] == port)
    return same


def _hash_connections(connections: Connections) -> Words:
    server, nat = connections["server"], connections["nat"]
    return _hash(
        connections["protocol"],
        (server[:, 0], server[:, 1], connections["server_port"]),
        (nat[:, 0], nat[:, 1], connections["nat_port"]),
    )


def _hash(
    protocol: Column, one: tuple[Words, Words, Column], other: tuple[Words, Words, Column]
) -> Words:
    """Return an odd number for each tuple, equal for both directions; shape (n,)."""
    total = protocol.astype(np.uint64)
    for high, low, port in (one, other):
        total = total + mix(mix(high) ^ low ^ port.astype(np.uint64) << np.uint64(32))
    hashes: Words = mix(total) | np.uint64(1)
    return hashes
