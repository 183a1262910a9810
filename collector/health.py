"""Mirror health: what tells an operator that the mirror is broken before the IDS goes blind.

Every frame is counted, and whether it was cut. The rest is read of a sample of flows, both
directions and all packets of each: of all flows while few frames come, of half of them, a quarter
and so on when more than 1,024 frames of the sample come in a second. The sample only gets smaller,
because a flow that were followed from its middle would seem to have no beginning; what was counted
of flows begins anew then. Of the sample's frames are read: the flow
(:mod:`collector.flow_health`), the checksums, and whether the same packet came before within 20 ms.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np

from collector.contiguous import FEW, join, snapshot
from collector.dedup import Deduplicator
from collector.delivery import Delivery
from collector.flow_health import TCP, FlowTable, Segments
from collector.packet_checks import bad_checksums, ip_end
from tunnelbridge.batch import Batch, Column, Octets
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.five_tuple import FiveTuples, read_five_tuples
from tunnelbridge.wire.flow import Flows, Words, mix, read_flows
from tunnelbridge.wire.octets import load

BUDGET: Final = 1024
"""Frames of the sample in one second."""
AT_ONCE: Final = 512
MOST_SHIFT: Final = 16
DUPLICATE_WINDOW: Final = 20_000_000
DUPLICATE_ENTRIES: Final = 1 << 14
SECOND: Final = 10**9
_UDP: Final = 17
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
_TYPE: Final = np.dtype([("type", ">u2")])
_ENDS4: Final = np.dtype(
    [("source", "=u4"), ("destination", "=u4"), ("from", "=u2"), ("to", "=u2")]
)
"""In any order of octets: only what both directions have in common is drawn from."""
_ENDS6: Final = np.dtype([("words", "=u8", 4), ("ports", "=u2", 2)])
_TCP_HEADER: Final = np.dtype(
    [("ports", ">u4"), ("sequence", ">u4"), ("acknowledgement", ">u4"), ("offset", "u1"),
     ("flags", "u1")]
)  # fmt: skip


class _Heap:
    """Snapshots that wait to be one delivery."""

    def __init__(self) -> None:
        self.frames = 0
        self._parts: list[Delivery] = []

    def add(self, part: Delivery) -> None:
        self._parts.append(part)
        self.frames += len(part)

    def take(self) -> Delivery:
        """Return all of it, at least one frame."""
        parts, self._parts, self.frames = self._parts, [], 0
        return join(parts)


class MirrorHealth:
    """Looks at deliveries; ``key`` is the secret of :class:`~collector.dedup.Deduplicator`."""

    def __init__(self, key: int, budget: int = BUDGET) -> None:
        self._budget = budget
        self._flows = FlowTable()
        self._dedup = Deduplicator(DUPLICATE_WINDOW, key, DUPLICATE_ENTRIES)
        self._shift = 0
        self._raw = _Heap()
        """Frames of small batches, of which nobody has looked yet which are of the sample."""
        self._sample = _Heap()
        self._second = self._in_second = 0
        self.frames = self.truncated = self.sampled = 0
        self.checked = self.bad_checksums = 0

    def take(self, delivery: Delivery) -> None:
        """Look at a batch; frames of the sample are copied and read when there are enough.

        What costs something for each batch, however small, is done once for many small ones.
        """
        self.frames += len(delivery)
        self.truncated += int(np.count_nonzero(delivery.truncated))
        if len(delivery) > FEW:
            self._sift(delivery)
        elif len(delivery):
            self._raw.add(snapshot(delivery))
            if self._raw.frames >= AT_ONCE:
                self._sift(self._raw.take())
        if self._sample.frames >= AT_ONCE:
            self._read_all(self._sample.take())

    def settle(self) -> None:
        """Read the frames that wait."""
        if self._raw.frames:
            self._sift(self._raw.take())
        if self._sample.frames:
            self._read_all(self._sample.take())

    def _sift(self, delivery: Delivery) -> None:
        """Keep the frames of the sample."""
        if self._shift:
            rows = np.flatnonzero(lots(delivery.frames) & np.uint64(self._mask) == 0)
            if rows.size:
                self._sample.add(snapshot(delivery, rows))
        else:
            self._sample.add(snapshot(delivery))

    def _read_all(self, together: Delivery) -> None:
        """Read frames; the sample may get smaller between two parts of them."""
        for first in range(0, len(together), AT_ONCE):
            part = together.select(np.arange(first, min(first + AT_ONCE, len(together))))
            kept = np.flatnonzero(lots(part.frames) & np.uint64(self._mask) == 0)
            if kept.size:
                self._read(part.select(kept))

    @property
    def _mask(self) -> int:
        return (1 << self._shift) - 1

    def as_dict(self) -> dict[str, Any]:
        """Return the report; numbers of flows are those of the sample, ``1 / sample`` of all."""
        self.settle()
        return {
            "frames": self.frames,
            "truncated": self.truncated,
            "sample": 1 << self._shift,
            "sampled_frames": self.sampled,
            **asdict(self._flows.counts()),
            "checked_checksums": self.checked,
            "bad_checksums": self.bad_checksums,
            "suspected_duplicates": self._dedup.duplicates,
        }

    def _read(self, delivery: Delivery) -> None:
        """Read frames without heads, all of the sample."""
        frames = delivery.frames
        self.sampled += len(frames)
        end = frames.start + frames.length
        flows = read_flows(frames.memory, frames.start, end)
        self._dedup.find(frames, delivery.stream, flows)
        checked, bad = bad_checksums(frames.memory, flows, end, delivery.truncated)
        self.checked += checked
        self.bad_checksums += bad
        followed = np.flatnonzero(
            (flows.ports >= 0)
            & ~flows.fragment
            & ((flows.protocol == TCP) | (flows.protocol == _UDP))
        )
        if followed.size:
            self._follow(frames.select(followed), flows.select(followed))
        self._thin_out(int(frames.timestamp[-1]), len(frames))

    def _follow(self, frames: Batch, flows: Flows) -> None:
        tuples = read_five_tuples(frames.memory, flows)
        header = load(frames.memory, flows.transport, _TCP_HEADER)
        behind = flows.transport + (header["offset"] >> 4).astype(np.int64) * 4
        segments = Segments(
            hash=flows.hash ^ mix(tuples.protocol.astype(np.uint64)),
            lot=lots(frames),
            direction=_direction(tuples),
            time=frames.timestamp,
            is_tcp=(tuples.protocol == TCP) & (flows.transport + _TCP_HEADER.itemsize <= flows.end),
            sequence=header["sequence"].astype(np.int64),
            acknowledgement=header["acknowledgement"].astype(np.int64),
            flags=header["flags"].astype(np.int64),
            length=np.maximum(ip_end(frames.memory, flows) - behind, 0),
        )
        whole = segments.is_tcp | (tuples.protocol != TCP)  # of a cut header nothing can be told
        if self._flows.room < len(whole):
            self._flows.settle_idle(int(frames.timestamp[-1]))
        if self._flows.take(segments if whole.all() else segments.select(whole)):
            self._halve()

    def _thin_out(self, now: int, count: int) -> None:
        """Halve the sample when more frames come in a second than may be read."""
        if now // SECOND != self._second:
            self._second, self._in_second = now // SECOND, 0
        self._in_second += count
        if self._in_second > self._budget:
            self._in_second = 0
            self._halve()

    def _halve(self) -> None:
        if self._shift < MOST_SHIFT:
            self._shift += 1
            self._flows.thin_out(self._mask)


def lots(frames: Batch) -> Words:
    """Draw a number for each frame's flow, equal in both directions; cheap, and random enough.

    It is of the addresses and what stands where ports are in a packet without IP options; frames of
    no IP all draw 1, so that none of them is in any sample but the whole.
    """
    memory = frames.memory
    if frames.head_length is None:
        network = frames.start + ethernet.HEADER.itemsize
        if (load(memory, network - 2, _TYPE)["type"] == ethernet.IPV4).all():  # the usual batch
            return _drawn(_ends4(memory, network))
    head = 0 if frames.head_length is None else frames.head_length
    start = frames.start - head
    network = start + ethernet.HEADER.itemsize
    if frames.head_length is None:
        found = ethernet.ethertypes(memory, start, frames.start + frames.length)
        network = found.payload
    else:  # a synthetic MAC header ends at the body; behind a tag that was put back stands a type
        network = network + np.where(frames.head_length == 16, 4, 0)
    limit = memory.size - 1
    version = memory[np.minimum(network, limit)] >> 4
    ends = _ends4(memory, network)
    six = np.flatnonzero(version == 6)
    if six.size:
        ends6 = load(memory, network[six] + 8, _ENDS6)
        words = ends6["words"]
        both = words[:, 0] ^ words[:, 2] ^ mix(words[:, 1] ^ words[:, 3])
        ends[six] = both + (ends6["ports"][:, 0] ^ ends6["ports"][:, 1])
    drawn = _drawn(ends)
    other = (version != 4) & (version != 6)
    if other.any():
        drawn[other] = np.iinfo(np.uint64).max
    return drawn


def _ends4(memory: Octets, network: Column) -> Words:
    header = load(memory, network + 12, _ENDS4)
    ends: Words = (header["source"] ^ header["destination"]).astype(np.uint64)
    ends |= (header["from"] ^ header["to"]).astype(np.uint64) << np.uint64(32)
    return ends


def _drawn(ends: Words) -> Words:
    drawn: Words = (ends * _ODD) >> np.uint64(40)  # the highest bits depend on all
    return drawn


def _direction(tuples: FiveTuples) -> Column:
    """Return 1 where the source is the greater end, 0 elsewhere."""
    high = tuples.source_high.astype(np.uint64), tuples.destination_high
    low = tuples.source_low, tuples.destination_low
    port = tuples.source_port > tuples.destination_port
    greater = (high[0] > high[1]) | (
        (high[0] == high[1]) & ((low[0] > low[1]) | ((low[0] == low[1]) & port))
    )
    direction: Column = greater.astype(np.int64)
    return direction
