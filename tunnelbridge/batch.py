"""A batch of packets: columns over memory that somebody else filled.

Every stage of both programs takes a batch and gives one back. A packet is **head + body**: octets we
put in front (a re-inserted VLAN tag, a segment's own TCP header, a synthetic Ethernet header) and a
slice of ``memory``. Nothing is copied and ``memory`` is never changed, because another stage or
another tunnel may look at the same octets.

Ownership: a batch is valid until its source releases the memory (the next ring block, the next
receive slab). Who wants to keep octets copies them. Sizes 0, 1, N and N+1 all work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Octets = npt.NDArray[np.uint8]
"""Shape (m,): memory that offsets refer to."""
Column = npt.NDArray[np.int64]
"""Shape (n,): one number per packet; offsets and lengths in octets, times in nanoseconds."""
Flags = npt.NDArray[np.bool_]
"""Shape (n,): one truth value per packet."""

INBOUND: Final = 0
OUTBOUND: Final = 1

NO_OCTETS: Final[Octets] = np.zeros(0, np.uint8)

VNET_HEADER: Final = np.dtype(
    [
        ("flags", "=u1"),
        ("gso_type", "=u1"),
        ("hdr_len", "=u2"),
        ("gso_size", "=u2"),
        ("csum_start", "=u2"),
        ("csum_offset", "=u2"),
    ]
)
"""struct virtio_net_hdr (linux/virtio_net.h), host byte order: what the kernel left undone."""
NEEDS_CSUM: Final = 1
"""VIRTIO_NET_HDR_F_NEEDS_CSUM, a bit of ``flags``."""


def zeros(count: int) -> Column:
    """Return a column of ``count`` zeros."""
    return np.zeros(count, np.int64)


@dataclass(slots=True)
class Batch:
    """Packets as columns, all of shape (n,).

    ``head`` and ``memory`` are two octet arrays; packet *i* is
    ``head[head_start[i]:][:head_length[i]] + memory[start[i]:][:length[i]]``.
    ``vlan`` is 0 or TPID << 16 | TCI of a tag the kernel took out of the frame; ``vnet`` is the
    virtio-net header of each packet (:data:`VNET_HEADER`) or None where the source has none.
    """

    memory: Octets
    start: Column
    length: Column
    wire_length: Column
    timestamp: Column
    direction: npt.NDArray[np.uint8]
    head: Octets = field(default_factory=lambda: NO_OCTETS)
    head_start: Column | None = None
    head_length: Column | None = None
    vlan: Column | None = None
    vnet: npt.NDArray[np.void] | None = None

    def __len__(self) -> int:
        return len(self.start)

    @property
    def total_length(self) -> Column:
        """Octets present of each packet: head and body."""
        return self.length if self.head_length is None else self.head_length + self.length

    def select(self, index: npt.NDArray[Any]) -> Batch:
        """Return the packets that ``index`` (positions or truth values) names, in its order."""
        return replace(
            self,
            start=self.start[index],
            length=self.length[index],
            wire_length=self.wire_length[index],
            timestamp=self.timestamp[index],
            direction=self.direction[index],
            head_start=None if self.head_start is None else self.head_start[index],
            head_length=None if self.head_length is None else self.head_length[index],
            vlan=None if self.vlan is None else self.vlan[index],
            vnet=None if self.vnet is None else self.vnet[index],
        )

    def cut(self, limit: int) -> Batch:
        """Return the packets with at most ``limit`` octets each; ``wire_length`` stays."""
        if self.head_length is None:
            return replace(self, length=np.minimum(self.length, limit))
        head = np.minimum(self.head_length, limit)
        return replace(self, head_length=head, length=np.minimum(self.length, limit - head))

    def skip(self, octets: Column | int) -> Batch:
        """Return the packets without their first ``octets`` octets (at most all of them)."""
        octets = np.minimum(octets, self.total_length)
        skipped = replace(self, wire_length=np.maximum(self.wire_length - octets, 0))
        if self.head_start is not None and self.head_length is not None:
            from_head = np.minimum(octets, self.head_length)
            skipped.head_start = self.head_start + from_head
            skipped.head_length = self.head_length - from_head
            octets = octets - from_head
        skipped.start = self.start + octets
        skipped.length = self.length - octets
        return skipped

    def octets(self, index: int) -> bytes:
        """Return a copy of one packet; for reports and tests, never for the data path."""
        start, length = int(self.start[index]), int(self.length[index])
        body = self.memory[start : start + length].tobytes()
        if self.head_start is None or self.head_length is None:
            return body
        head = int(self.head_start[index])
        return self.head[head : head + int(self.head_length[index])].tobytes() + body


def from_packets(packets: list[bytes], timestamp: int = 0, direction: int = INBOUND) -> Batch:
    """Build a batch over a copy of ``packets``; for tests and one-off packets."""
    memory = np.frombuffer(b"".join(packets), np.uint8)
    length = np.array([len(packet) for packet in packets], np.int64)
    start = np.cumsum(length) - length
    return Batch(
        memory=memory,
        start=start,
        length=length,
        wire_length=length.copy(),
        timestamp=np.full(len(packets), timestamp, np.int64),
        direction=np.full(len(packets), direction, np.uint8),
    )
