"""The collector's counters: every datagram and every frame ends in exactly one bucket.

received = rejected + decapsulated, and per sink decapsulated = deduplicated + waiting + delivered +
queued + dropped + filtered. What a socket's buffer could not take, and what the kernel could not put
together from its fragments, never reached us and is told beside.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tunnelbridge.wire.layer import Kind

_IDENTIFIERS: Final = {
    Kind.VXLAN.slug: "vni",
    Kind.VXLAN_GPE.slug: "vni",
    Kind.GENEVE.slug: "vni",
    Kind.GRE.slug: "key",
    Kind.GRE_IP.slug: "key",
    Kind.ERSPAN2.slug: "session",
    Kind.ERSPAN3.slug: "session",
    Kind.MPLS.slug: "label",
}
"""What each encapsulation calls the number that tells its streams apart."""


@dataclass(slots=True)
class SinkLedger:
    """What became of the frames given to one sink; a writer thread may share it."""

    name: str
    delivered: int = 0
    octets: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    queued: int = 0
    """Frames that wait for the sink's writer."""
    filtered: int = 0
    """Frames that the sink's own filter does not want."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def total(self) -> int:
        """Return all frames given to the sink."""
        return self.delivered + self.queued + self.dropped.total() + self.filtered

    def as_dict(self) -> dict[str, Any]:
        """Return the sink as ``--stats`` writes it."""
        with self.lock:
            return {
                "name": self.name,
                "delivered": self.delivered,
                "octets": self.octets,
                "queued": self.queued,
                "filtered": self.filtered,
                "dropped": dict(self.dropped),
            }


@dataclass(slots=True)
class StreamLedger:
    """One (outer source, encapsulation, identifier)."""

    source: str
    encapsulation: str
    identifier: int | None
    packets: int = 0
    octets: int = 0
    truncated: int = 0
    lost: int = 0
    """Sequence numbers that never came, as of now; a late one takes its loss back."""
    reordered: int = 0
    duplicate: int = 0
    restarts: int = 0
    first_seen: int = 0
    """Arrival of the first and the last frame, nanoseconds since the epoch."""
    last_seen: int = 0
    sequence_first: int | None = None
    """The first sequence number that came, and the one that is expected next, both below 2**32."""
    sequence_next: int | None = None

    def key(self) -> str:
        """Return the stream's name, for people, files and interfaces: ``vxlan 192.0.2.1 vni 7``."""
        name = f"{self.encapsulation} {self.source}"
        if self.identifier is None:
            return name
        return f"{name} {_IDENTIFIERS.get(self.encapsulation, 'id')} {self.identifier}"

    def as_dict(self) -> dict[str, Any]:
        """Return the stream as ``--stats`` writes it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class RefusedSender:
    """What one outer source sent that was refused for one reason."""

    source: str
    encapsulation: str | None
    """None where it was refused before that was known."""
    reason: str
    packets: int = 0
    first_seen: int = 0
    """Arrival of the first and the last datagram, nanoseconds since the epoch."""
    last_seen: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the sender as ``--stats`` writes it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class CollectorLedger:
    """What became of everything that was received."""

    received: int = 0
    socket_dropped: int = 0
    reassembly_failed: int = 0
    """Datagrams that the kernel could not put together, of the whole network namespace."""
    rejected: Counter[str] = field(default_factory=Counter)
    decapsulated: int = 0
    deduplicated: int = 0
    """Frames that came a second time; no sink was given them."""
    waiting: int = 0
    """Frames that wait for others to be put in order."""
    late: int = 0
    """Frames that came too late to be put in order; told beside, they were passed on."""
    hurried: int = 0
    """Frames passed on before their time, for want of room; told beside."""
    sinks: list[SinkLedger] = field(default_factory=list)

    def balances(self) -> bool:
        """Tell whether every datagram and every frame is accounted for."""
        return self.received == self.rejected.total() + self.decapsulated and all(
            sink.total() + self.deduplicated + self.waiting == self.decapsulated
            for sink in self.sinks
        )

    def as_dict(
        self,
        program: str,
        streams: Sequence[StreamLedger],
        refused: Sequence[RefusedSender] = (),
    ) -> dict[str, Any]:
        """Return the ledger as ``--stats`` writes it."""
        return {
            "program": program,
            "received": self.received,
            "socket_dropped": self.socket_dropped,
            "reassembly_failed": self.reassembly_failed,
            "rejected": dict(self.rejected),
            "decapsulated": self.decapsulated,
            "deduplicated": self.deduplicated,
            "waiting": self.waiting,
            "late": self.late,
            "hurried": self.hurried,
            "streams": [stream.as_dict() for stream in streams],
            "sinks": [sink.as_dict() for sink in self.sinks],
            "refused": [sender.as_dict() for sender in refused],
            "balanced": self.balances(),
        }
