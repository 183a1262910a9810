"""Flows as mirror health sees them: which directions came, with which beginning, and what is missing.

For each direction of a TCP flow the next sequence number is followed (RFC 9293 §3.4). What is passed
over is a hole, by a segment beyond it or by the other side's acknowledgement; a segment that comes
late fills it. A hole that the other side has acknowledged was on the network and not in the mirror.
It is an estimate from below: a retransmission of something else counts as filling too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags
from tunnelbridge.wire.flow import Words

TCP: Final = 6
FIN, SYN, RST, ACK = 1, 2, 4, 16
MOST_FLOWS: Final = 1 << 15
IDLE: Final = 120 * 10**9
"""Nanoseconds without a packet after which a flow is settled and forgotten."""
_HALF: Final = 1 << 31
_FAR: Final = 1 << 26
"""Octets: what lies further off belongs to another connection of the same ports."""
_RUN: Final = 40
"""Bits of room between the runs of one accumulation; sequence numbers differ by 27."""


@dataclass(slots=True)
class Segments:
    """TCP and UDP packets of followed flows; columns of shape (n,)."""

    hash: Words
    """Of the flow, equal in both directions."""
    lot: Words
    """By which it is decided which flows are followed."""
    direction: Column
    """0 or 1, the same for all packets of one side."""
    time: Column
    is_tcp: Flags
    sequence: Column
    acknowledgement: Column
    flags: Column
    length: Column
    """Octets of payload, as the IP header tells them."""

    def select(self, index: npt.NDArray[Any]) -> Segments:
        """Return the rows at ``index``."""
        return Segments(*(getattr(self, each.name)[index] for each in fields(self)))


@dataclass(slots=True)
class FlowCounts:
    """What was found of all flows followed so far."""

    flows: int = 0
    one_direction: int = 0
    """Of them, those of which only one side was seen; of TCP only where the other side must have
    answered, because an acknowledgement came."""
    tcp_flows: int = 0
    tcp_one_direction: int = 0
    tcp_without_syn: int = 0
    """Connections that were there before the collector are among them."""
    tcp_octets: int = 0
    """Payload seen, retransmissions included."""
    acked_unseen_octets: int = 0

    def add(self, other: FlowCounts) -> FlowCounts:
        """Return the sums."""
        return FlowCounts(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )


class FlowTable:
    """At most ``most`` flows at a time; those that were idle for long are settled first."""

    def __init__(self, most: int = MOST_FLOWS) -> None:
        self._most = most
        self._slots: dict[int, int] = {}
        self._free = list(range(most - 1, -1, -1))
        self._settled = FlowCounts()
        self.hash: Words = np.zeros(most, np.uint64)
        self.lot: Words = np.zeros(most, np.uint64)
        self._last = np.zeros(most, np.int64)
        self._is_tcp = np.zeros(most, np.bool_)
        self._flags = np.zeros(most, np.int64)
        # of each direction: twice the slot, plus the direction
        self._packets = np.zeros(2 * most, np.int64)
        self._octets = np.zeros(2 * most, np.int64)
        self._next = np.full(2 * most, -1, np.int64)
        self._hole = np.zeros(2 * most, np.int64)
        self._hole_end = np.zeros(2 * most, np.int64)
        self._acked = np.full(2 * most, -1, np.int64)

    @property
    def room(self) -> int:
        """How many flows more can be followed."""
        return len(self._free)

    def counts(self) -> FlowCounts:
        """Return what was found so far."""
        return self._settled.add(self._count(self._used()))

    def take(self, segments: Segments) -> int:
        """Follow packets in their order; return how many were left out for want of room."""
        slot = self._slot_of(segments)
        known = slot >= 0
        left_out = len(slot) - int(np.count_nonzero(known))
        if left_out:
            segments, slot = segments.select(known), slot[known]
        self._last[slot] = segments.time
        np.bitwise_or.at(self._flags, slot, segments.flags * segments.is_tcp)
        side = 2 * slot + segments.direction
        np.add.at(self._packets, side, 1)
        tcp = np.flatnonzero(segments.is_tcp)
        if tcp.size:
            self._follow(segments.select(tcp), side[tcp])
        return left_out

    def settle_idle(self, now: int) -> None:
        """Count and forget flows of which nothing came for long."""
        used = self._used()
        self._forget(used[self._last[used] < now - IDLE], is_settled=True)

    def thin_out(self, mask: int) -> None:
        """Forget, uncounted, the flows whose lot has one of the bits of ``mask``."""
        used = self._used()
        self._forget(used[self.lot[used] & np.uint64(mask) != 0], is_settled=False)
        self._settled = FlowCounts()  # what was followed from now on is one sample, and comparable

    def _used(self) -> Column:
        return np.fromiter(self._slots.values(), np.int64, len(self._slots))

    def _forget(self, slots: Column, *, is_settled: bool) -> None:
        if is_settled:
            self._settled = self._settled.add(self._count(slots))
        for value, slot in zip(self.hash[slots].tolist(), slots.tolist(), strict=True):
            del self._slots[value]
            self._free.append(slot)

    def _slot_of(self, segments: Segments) -> Column:
        """Return the slot of each packet's flow, -1 where there is no room; looks at flows once."""
        values, first, inverse = np.unique(segments.hash, return_index=True, return_inverse=True)
        slots = np.array([self._slots.get(value, -1) for value in values.tolist()], np.int64)
        new = np.flatnonzero(slots < 0)[: len(self._free)]
        if new.size:
            taken = [self._free.pop() for _ in range(len(new))]
            slots[new] = taken
            self._slots.update(zip(values[new].tolist(), taken, strict=True))
            self._clear(slots[new])
            self.hash[slots[new]] = values[new]
            self.lot[slots[new]] = segments.lot[first[new]]
            self._is_tcp[slots[new]] = segments.is_tcp[first[new]]
        found: Column = slots[inverse]
        return found

    def _clear(self, slots: Column) -> None:
        self._flags[slots] = 0
        for side in (2 * slots, 2 * slots + 1):
            for column in (self._packets, self._octets, self._hole, self._hole_end):
                column[side] = 0
            self._next[side] = self._acked[side] = -1

    def _follow(self, tcp: Segments, side: Column) -> None:
        """Account for sequence numbers, then for acknowledgements."""
        np.add.at(self._octets, side, tcp.length)
        syn = np.flatnonzero(tcp.flags & SYN)
        self._next[side[syn]] = (tcp.sequence[syn] + 1) & 0xFFFFFFFF
        told = np.flatnonzero(tcp.flags & (SYN | RST) == 0)
        if told.size:
            self._follow_sequence(tcp.select(told), side[told])
        acks = np.flatnonzero((tcp.flags & ACK != 0) & (tcp.flags & RST == 0))
        if acks.size:
            self._follow_acknowledgements(tcp.acknowledgement[acks], side[acks] ^ 1)

    def _follow_sequence(self, tcp: Segments, side: Column) -> None:
        order = np.argsort(side, kind="stable")
        side, sequence = side[order], tcp.sequence[order]
        octets = (tcp.length + (tcp.flags & FIN))[order]
        is_first = np.append(True, side[1:] != side[:-1])
        begins = np.flatnonzero(is_first)
        unknown = begins[self._next[side[begins]] < 0]
        self._next[side[unknown]] = sequence[unknown]
        start = _ahead(sequence, self._next[side])
        odd = np.abs(start) > _FAR
        if odd.any():  # another connection of the same ports: begin anew where it stands
            self._next[side[odd]] = (sequence + octets)[odd] & 0xFFFFFFFF
            start, octets = np.where(odd, 0, start), np.where(odd, 0, octets)
        run = (np.cumsum(is_first) - 1) << _RUN
        reached = np.maximum.accumulate(start + octets + run)
        before = np.maximum(np.append(0, reached[:-1]), run)
        gap = np.maximum(start + run - before, 0)
        filled = np.maximum(np.minimum(start + octets + run, before) - (start + run), 0)
        runs = side[begins]
        self._hole[runs] = _floored_sums(self._hole[runs], gap - filled, begins)
        ends = np.append(begins[1:], len(side)) - 1
        base = self._next[runs]
        beyond = np.where(gap > 0, start, -_HALF)
        last_gap = np.maximum.reduceat(beyond, begins)
        has_gap = last_gap > -_HALF
        self._hole_end[runs[has_gap]] = (base + last_gap)[has_gap] & 0xFFFFFFFF
        advance = np.maximum(reached[ends] - run[ends], 0)
        self._next[runs] = (base + advance) & 0xFFFFFFFF

    def _follow_acknowledgements(self, number: Column, side: Column) -> None:
        """Account for what was acknowledged of ``side``, and make holes of what was not seen."""
        known = self._next[side] >= 0
        number, side = number[known], side[known]
        ahead = _ahead(number, self._next[side])
        near = np.abs(ahead) <= _FAR
        side, ahead = side[near], ahead[near]
        if not side.size:
            return
        sides, inverse = np.unique(side, return_inverse=True)
        furthest = np.full(len(sides), -_HALF)
        np.maximum.at(furthest, inverse, ahead)
        acked = (self._next[sides] + furthest) & 0xFFFFFFFF
        further = (self._acked[sides] < 0) | (_ahead(acked, self._acked[sides]) > 0)
        self._acked[sides[further]] = acked[further]
        unseen = np.flatnonzero(furthest > 0)
        self._hole[sides[unseen]] += furthest[unseen]
        self._hole_end[sides[unseen]] = self._next[sides[unseen]] = acked[unseen]

    def _count(self, slots: Column) -> FlowCounts:
        """Return the counts of these flows."""
        packets = self._packets.reshape(-1, 2)[slots]
        is_tcp, flags = self._is_tcp[slots], self._flags[slots]
        one = (packets == 0).any(axis=1) & (~is_tcp | (flags & ACK != 0))
        sides = np.concatenate([2 * slots[is_tcp], 2 * slots[is_tcp] + 1])
        is_acked = (self._acked[sides] >= 0) & (
            _ahead(self._acked[sides], self._hole_end[sides]) >= 0
        )
        return FlowCounts(
            flows=len(slots),
            one_direction=int(np.count_nonzero(one)),
            tcp_flows=int(np.count_nonzero(is_tcp)),
            tcp_one_direction=int(np.count_nonzero(one & is_tcp)),
            tcp_without_syn=int(np.count_nonzero(is_tcp & (flags & SYN == 0))),
            tcp_octets=int(self._octets[sides].sum()),
            acked_unseen_octets=int(self._hole[sides][is_acked].sum()),
        )


def _ahead(number: Column, of: Column) -> Column:
    """Return how far 32-bit sequence numbers lie ahead of others, negative if behind."""
    ahead: Column = ((number - of + _HALF) & 0xFFFFFFFF) - _HALF
    return ahead


def _floored_sums(initial: Column, change: Column, begins: Column) -> Column:
    """Add up each run's changes to its initial value, never below zero after any of them."""
    total = np.cumsum(change)
    before = total[begins] - change[begins]
    ends = np.append(begins[1:], len(change)) - 1
    lowest = np.minimum.reduceat(total, begins) - before + initial
    result: Column = total[ends] - before + initial - np.minimum(lowest, 0)
    return result
