"""What one slab of datagrams goes through before it reaches a sink.

Allow-list, decapsulation, the allow-list once more for rules that name tunnels, and the streams'
counters. Whatever is refused on the way is counted by reason, and its sender remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from collector.allow import AllowList
from collector.decap import Decapsulated, decapsulate
from collector.delivery import Delivery
from collector.ledger import CollectorLedger
from collector.listener import Listener
from collector.refused import RefusedSenders
from collector.streams import StreamTable
from tunnelbridge.batch import Batch
from tunnelbridge.linux.receive import Datagrams
from tunnelbridge.wire.layer import Codes
from tunnelbridge.wire.reasons import Reason, count
from tunnelbridge.wire.walk import LEVELS

Sources = npt.NDArray[np.uint8]
"""Shape (n, 16): outer source addresses, IPv4 as mapped IPv6."""


@dataclass(slots=True)
class Intake:
    """Turns datagrams into a delivery."""

    ledger: CollectorLedger
    streams: StreamTable
    allow: AllowList
    ports: Codes
    """The table of UDP ports that tunnels listen on (:func:`tunnelbridge.wire.udp.port_table`)."""
    levels: int = LEVELS
    source_time: bool = False
    """Frames have the time that their source tells, where it tells one."""
    most: int | None = None
    """Frames to take in all; what comes after them is left out as if it had not come."""
    refused: RefusedSenders = field(default_factory=RefusedSenders)

    def take(self, datagrams: Datagrams, listener: Listener) -> Delivery | None:
        """Account for one slab of datagrams; return their frames, None where there are none."""
        batch, source = datagrams.batch, datagrams.source
        self.ledger.received += len(batch)
        if self.allow:
            batch, source = self._allowed(batch, source)
        found = decapsulate(batch, listener.first, self.ports, self.levels, self.source_time)
        if self.allow.names_tunnels:
            found = self._allowed_tunnels(source, found)
        self._reject(batch, source, found.outermost, found.reason)
        if self.most is not None:
            found = self._up_to(self.most, found)
        self.ledger.decapsulated += len(found.batch)
        if not len(found.batch):
            return None
        stream, gap = self.streams.take(
            source[found.index],
            found.encapsulation,
            found.identifier,
            found.sequence,
            found.batch.total_length,
            found.truncated,
            batch.timestamp[found.index],
        )
        return Delivery(
            found.batch,
            stream,
            gap,
            found.truncated,
            datagrams.slab,
            batch,
            found.index,
            listener.first,
            listener.port,
        )

    def _allowed(self, batch: Batch, source: Sources) -> tuple[Batch, Sources]:
        """Refuse by source, before anything is looked at."""
        allowed = self.allow.allows(source)
        if allowed.all():
            return batch, source
        reason = np.where(allowed, Reason.GOOD, Reason.NOT_ALLOWED).astype(np.uint8)
        self._reject(batch, source, np.zeros_like(reason), reason)
        return batch.select(allowed), source[allowed]

    def _allowed_tunnels(self, source: Sources, found: Decapsulated) -> Decapsulated:
        """Refuse by source and identifier, before anything is delivered."""
        allowed = self.allow.allows_tunnels(
            source[found.index], found.encapsulation, found.identifier
        )
        if allowed.all():
            return found
        found.reason[found.index[~allowed]] = Reason.NOT_ALLOWED
        return found.select(np.flatnonzero(allowed))

    def _reject(self, batch: Batch, source: Sources, encapsulation: Codes, reason: Codes) -> None:
        """Count what was refused by reason, and remember who sent it."""
        where = np.flatnonzero(reason)
        if where.size:
            self.ledger.rejected.update(count(reason[where]))
            self.refused.take(
                source[where], encapsulation[where], reason[where], batch.timestamp[where]
            )

    def _up_to(self, most: int, found: Decapsulated) -> Decapsulated:
        wanted = np.arange(min(most - self.ledger.decapsulated, len(found.index)))
        self.ledger.received -= len(found.index) - len(wanted)
        return found.select(wanted)
