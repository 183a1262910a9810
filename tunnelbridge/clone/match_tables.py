"""One table per field of the rules: a packet's value gives the rules whose field matches it.

Values that the same rules match form a class: elementary intervals of addresses (found by binary
search, or in a trie where there are many) and of ports (in a direct table). Fields that no rule
restricts have no table. The halves of an IPv6 address are two fields, because a prefix is an interval
of the first half, or one value of it and an interval of the second; only IPv6 packets are looked up
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import INBOUND, OUTBOUND, Column
from tunnelbridge.clone.rules import MAX_PORT, Network, Ranges, Rule
from tunnelbridge.wire.five_tuple import FiveTuples

Words = npt.NDArray[np.uint64]
Bits = npt.NDArray[np.uint64]
"""Shape (n, words): one bit per rule."""
Placed = Sequence[tuple[int, Rule]]
"""Rules with the places of their bits: word * 64 + bit."""
RangesOf = Callable[[Rule], Ranges | None]
"""What a rule says of one field; None: it matches any value."""

_PROTOCOLS: Final = 257
"""Protocols 0 to 255 behind -1, unknown."""
_DIRECTIONS: Final = {"both": (INBOUND, OUTBOUND), "in": (INBOUND,), "out": (OUTBOUND,)}
_FEW: Final = 16
"""Intervals that a binary search finds as fast as a trie; with 1000 it takes five times as long."""
_HALF: Final = 64
_HALF_MASK: Final = 2**64 - 1


class Matches:
    """The tables of all fields, for rules whose bits lie in ``words`` words."""

    def __init__(self, rules: Placed, words: int) -> None:
        def table(ranges_of: RangesOf) -> _Intervals | None:
            return _intervals(rules, words, ranges_of)

        self._kinds = _kinds(rules, words)
        self._source4 = _trie(table(lambda rule: _range4(rule.source)))
        self._destination4 = _trie(table(lambda rule: _range4(rule.destination)))
        self._source_ports = _direct(table(lambda rule: rule.source_ports))
        self._destination_ports = _direct(table(lambda rule: rule.destination_ports))
        self._source_high = table(lambda rule: _high_range(rule.source))
        self._source_low = table(lambda rule: _low_range(rule.source))
        self._destination_high = table(lambda rule: _high_range(rule.destination))
        self._destination_low = table(lambda rule: _low_range(rule.destination))

    def look_up(self, direction: npt.NDArray[np.uint8], tuples: FiveTuples) -> Bits:
        """Return the rules that match each packet, shape (n, words)."""
        kind = (direction.astype(np.int64) * 4 + (tuples.family >> 1)) * _PROTOCOLS
        bits = self._kinds.take(kind + (tuples.protocol + 1), axis=0)
        # In the IPv4 tables rules for IPv6 match any value, and the other way round: the family is
        # part of the kind.
        for intervals, address in (
            (self._source4, tuples.source_low),
            (self._destination4, tuples.destination_low),
        ):
            if intervals is not None:
                bits &= intervals.look_up(address)
        for ports, port in (
            (self._source_ports, tuples.source_port),
            (self._destination_ports, tuples.destination_port),
        ):
            if ports is not None:
                bits &= ports.look_up(port)
        self._look_up_ipv6(bits, tuples)
        return bits

    def _look_up_ipv6(self, bits: Bits, tuples: FiveTuples) -> None:
        fields = [
            (intervals, half)
            for intervals, half in (
                (self._source_high, tuples.source_high),
                (self._source_low, tuples.source_low),
                (self._destination_high, tuples.destination_high),
                (self._destination_low, tuples.destination_low),
            )
            if intervals is not None
        ]
        rows = np.flatnonzero(tuples.family == 6) if fields else ()
        if len(rows):
            for intervals, half in fields:
                bits[rows] &= intervals.look_up(half[rows])


class _Intervals:
    """Classes by binary search: class i begins at ``bounds[i]``."""

    def __init__(self, bounds: Words, matching: Bits, unrestricted: Bits) -> None:
        self.bounds = bounds
        self.matching = matching
        self.unrestricted = unrestricted
        """Shape (words,): the rules that match any value."""

    def classes(self, values: Words) -> Column:
        return np.searchsorted(self.bounds, values, "right") - 1

    def look_up(self, values: Words) -> Bits:
        return self.matching.take(self.classes(values), axis=0)


class _Trie:
    """Classes of IPv4 addresses in three steps of 16, 8 and 8 bits.

    Each step gives a block of 256 entries for the next one. Blocks 0 to classes - 1 lead to that class
    whatever follows, so that every address takes all three steps.
    """

    def __init__(self, intervals: _Intervals) -> None:
        self._matching = intervals.matching
        count = len(self._matching)
        leaves = np.repeat(np.arange(count, dtype=np.int32), 256)
        starts = np.arange(1 << 16, dtype=np.uint64) << np.uint64(16)
        steps = []
        for rest in (16, 8):  # bits that are still to be looked at
            inside = np.uint64((1 << rest) - 1)
            block, last = intervals.classes(starts), intervals.classes(starts + inside)
            divided = np.flatnonzero(block != last)
            block[divided] = count + np.arange(len(divided))
            steps.append(block.astype(np.int32))
            entries = np.arange(256, dtype=np.uint64) << np.uint64(rest - 8)
            starts = (starts[divided, np.newaxis] + entries).ravel()
        self._first = steps[0]
        self._second = np.concatenate([leaves, steps[1]])
        self._third = np.concatenate([leaves, intervals.classes(starts).astype(np.int32)])

    def look_up(self, values: Words) -> Bits:
        address = values.astype(np.uint32)  # of IPv6 packets too: their result does not matter
        block = self._first.take(address >> 16).astype(np.int64)
        block = self._second.take((block << 8) + ((address >> 8) & 0xFF)).astype(np.int64)
        return self._matching.take(self._third.take((block << 8) + (address & 0xFF)), axis=0)


class _Ports:
    """Classes by a direct table, whose last entry is that of -1: unknown."""

    def __init__(self, intervals: _Intervals) -> None:
        known = intervals.classes(np.arange(MAX_PORT + 1, dtype=np.uint64))
        self._classes = np.append(known, len(intervals.matching)).astype(np.int32)
        self._matching = np.concatenate([intervals.matching, [intervals.unrestricted]])

    def look_up(self, values: Column) -> Bits:
        return self._matching.take(self._classes[values], axis=0)


def _intervals(rules: Placed, words: int, ranges_of: RangesOf) -> _Intervals | None:
    """Return the table of a field, None if all rules match any value of it."""
    restricted = [(place, ranges_of(rule)) for place, rule in rules]
    ends = {0}
    for _, ranges in restricted:
        for low, high in ranges or ():
            ends |= {low, high + 1}
    if all(ranges is None for _, ranges in restricted):
        return None
    bounds = np.array(sorted(ends - {_HALF_MASK + 1}), np.uint64)
    matching = np.zeros((len(bounds), words), np.uint64)
    unrestricted = np.zeros(words, np.uint64)
    for place, ranges in restricted:
        word, bit = place // 64, np.uint64(1 << place % 64)
        if ranges is None:
            matching[:, word] |= bit
            unrestricted[word] |= bit
        for low, high in ranges or ():
            first, last = np.searchsorted(bounds, np.array([low, high], np.uint64), "right")
            matching[first - 1 : last, word] |= bit
    return _Intervals(bounds, matching, unrestricted)


def _trie(intervals: _Intervals | None) -> _Intervals | _Trie | None:
    return intervals if intervals is None or len(intervals.bounds) <= _FEW else _Trie(intervals)


def _direct(intervals: _Intervals | None) -> _Ports | None:
    return None if intervals is None else _Ports(intervals)


def _kinds(rules: Placed, words: int) -> Bits:
    """Return the rules that match each direction, family and protocol, one row per combination."""
    matching = np.zeros((2, 4, _PROTOCOLS, words), np.uint64)
    for place, rule in rules:
        families = _families(rule)
        protocols = slice(None) if rule.protocol is None else rule.protocol + 1
        for direction in _DIRECTIONS[rule.direction]:
            matching[direction, families, protocols, place // 64] |= np.uint64(1 << place % 64)
    return matching.reshape(-1, words)


def _families(rule: Rule) -> list[int]:
    """Return the halves of the families (0 for no IP) that a rule can match."""
    if rule.any_family:
        return [rule.any_family // 2]
    return [0, 2, 3] if rule.matches_all else [2, 3]


def _range4(network: Network | None) -> Ranges | None:
    if network is None or network.version != 4 or not network.prefixlen:
        return None
    return ((int(network.network_address), int(network.broadcast_address)),)


def _high_range(network: Network | None) -> Ranges | None:
    if network is None or network.version != 6 or not network.prefixlen:
        return None
    first, last = int(network.network_address), int(network.broadcast_address)
    return ((first >> _HALF, last >> _HALF),)


def _low_range(network: Network | None) -> Ranges | None:
    if network is None or network.version != 6 or network.prefixlen <= _HALF:
        return None
    first, last = int(network.network_address), int(network.broadcast_address)
    return ((first & _HALF_MASK, last & _HALF_MASK),)
