"""Put IP fragments of a capture file together again; live sockets get whole datagrams anyway.

One packet at a time, in plain Python: fragments are rare. Memory is bounded, time is an argument.
Sources: RFC 791 §3.2, RFC 8200 §4.5, RFC 5722 (overlaps), RFC 6946 (atomic fragments).
``fragments`` reads and writes the headers.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Final

from collector.fragments import Fragment, parse, too_long, with_lengths

_DATAGRAM_COST: Final = 800
_FRAGMENT_COST: Final = 200
"""Octets that Python's objects take beside the data, roughly (sys.getsizeof)."""


@dataclass(slots=True)
class _Datagram:
    """A datagram that is not whole yet, or a dead one, whose other fragments are ignored."""

    since: int
    dead: bool = False
    cost: int = _DATAGRAM_COST
    offsets: list[int] = field(default_factory=list)
    pieces: dict[int, bytes] = field(default_factory=dict)
    header: bytes = b""
    received: int = 0
    end: int | None = None

    def repeats(self, fragment: Fragment) -> bool:
        """Tell whether exactly this fragment is here already."""
        same = self.pieces.get(fragment.offset) == fragment.data
        return same and fragment.more == (fragment.end != self.end)

    def contradicts(self, fragment: Fragment) -> bool:
        """Tell whether a fragment overlaps another or disagrees about where the datagram ends."""
        at = bisect.bisect_left(self.offsets, fragment.offset)
        if at and self._end_of(at - 1) > fragment.offset:
            return True
        if at < len(self.offsets) and (self.offsets[at] < fragment.end or not fragment.more):
            return True
        return self.end is not None and fragment.end > self.end

    def _end_of(self, index: int) -> int:
        offset = self.offsets[index]
        return offset + len(self.pieces[offset])

    def take(self, fragment: Fragment) -> None:
        """Keep a fragment."""
        bisect.insort(self.offsets, fragment.offset)
        self.pieces[fragment.offset] = fragment.data
        self.received += len(fragment.data)
        self.cost += len(fragment.data) + _FRAGMENT_COST
        if not fragment.more:
            self.end = fragment.end
        if fragment.offset == 0:
            self.header = fragment.header
            self.cost += len(fragment.header)

    def bury(self) -> None:
        """Forget the data, remember the datagram."""
        self.dead = True
        self.cost = _DATAGRAM_COST
        self.offsets, self.pieces, self.header = [], {}, b""


class Reassembler:
    """Collects fragments of IPv4 and IPv6 datagrams until they are whole.

    ``limit_octets`` bounds the memory that waiting fragments take, the oldest datagram goes first;
    ``timeout_ns`` is how long after its first fragment a datagram is waited for. Counters, in
    datagrams: ``completed``, ``timed_out``, ``overlapped`` (fragments overlap or disagree about the
    length), ``oversized`` (more than 65535 octets), ``evicted``; in packets: ``malformed``.

    A datagram with overlapping fragments is dropped together with the fragments still to come
    (RFC 5722; here for IPv4 too); a fragment that is repeated octet for octet is ignored.
    """

    def __init__(self, limit_octets: int = 16 << 20, timeout_ns: int = 30_000_000_000) -> None:
        self._limit = limit_octets
        self._timeout = timeout_ns
        self._cost = 0
        self._datagrams: dict[tuple[bytes, ...], _Datagram] = {}  # in order of first arrival
        self.completed = 0
        self.timed_out = 0
        self.overlapped = 0
        self.oversized = 0
        self.evicted = 0
        self.malformed = 0

    @property
    def pending(self) -> int:
        """Datagrams that wait for more fragments."""
        return sum(not datagram.dead for datagram in self._datagrams.values())

    def add(self, packet: bytes, timestamp: int) -> bytes | None:
        """Take one packet from its IP header on; return the whole datagram's packet or None.

        ``timestamp`` is in nanoseconds. A packet that is no fragment comes back as it is. IPv4:
        the first fragment's header without fragmentation, with total length and checksum set.
        IPv6: the first fragment's headers without the fragment header. Octets after the packet's
        own length are ignored; never raises on what the packet says.
        """
        self._expire(timestamp)
        fragment = parse(packet)
        if fragment is None:
            self.malformed += 1
            return None
        if not fragment.key:
            return packet
        if fragment.offset == 0 and not fragment.more:  # atomic: RFC 6946 §4
            return self._finish(fragment.header, fragment.data)
        datagram = self._datagram(fragment.key, timestamp)
        if datagram.dead or datagram.repeats(fragment):
            return None
        if datagram.contradicts(fragment):
            self.overlapped += 1
            self._bury(datagram)
        elif too_long(fragment.header, fragment.end):
            self.oversized += 1
            self._bury(datagram)
        else:
            self._cost -= datagram.cost
            datagram.take(fragment)
            self._cost += datagram.cost
            if datagram.received == datagram.end:
                self._forget(fragment.key)
                data = b"".join(datagram.pieces[offset] for offset in datagram.offsets)
                return self._finish(datagram.header, data)
        self._evict()
        return None

    def _datagram(self, key: tuple[bytes, ...], timestamp: int) -> _Datagram:
        found = self._datagrams.get(key)
        if found is not None and timestamp - found.since > self._timeout:
            self._time_out(key)  # times need not be in order, so this one was not the oldest
            found = None
        if found is None:
            found = self._datagrams[key] = _Datagram(timestamp)
            self._cost += found.cost
        return found

    def _finish(self, header: bytes, data: bytes) -> bytes | None:
        if too_long(header, len(data)):  # the first fragment's header is longer than the others'
            self.oversized += 1
            return None
        self.completed += 1
        return with_lengths(header, len(data)) + data

    def _bury(self, datagram: _Datagram) -> None:
        self._cost -= datagram.cost
        datagram.bury()
        self._cost += datagram.cost

    def _forget(self, key: tuple[bytes, ...]) -> _Datagram:
        datagram = self._datagrams.pop(key)
        self._cost -= datagram.cost
        return datagram

    def _time_out(self, key: tuple[bytes, ...]) -> None:
        self.timed_out += not self._forget(key).dead

    def _expire(self, now: int) -> None:
        while self._datagrams:
            key, oldest = next(iter(self._datagrams.items()))
            if now - oldest.since <= self._timeout:
                break
            self._time_out(key)

    def _evict(self) -> None:
        while self._cost > self._limit:
            self.evicted += not self._forget(next(iter(self._datagrams))).dead
