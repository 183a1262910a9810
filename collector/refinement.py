"""Between decapsulation and the sinks: health looked at, duplicates out, streams in order of time.

Each of it only if it is wanted.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np

from collector.dedup import Deduplicator
from collector.delivery import Delivery
from collector.health import MirrorHealth
from collector.ledger import CollectorLedger
from collector.reorder import Reorderer


@dataclass(slots=True)
class Wishes:
    """What the command line asked for; windows in nanoseconds, 0 for none."""

    health: bool = True
    dedup: int = 0
    reorder: int = 0


class Refinement:
    """Takes deliveries, gives those for the sinks, and keeps their part of the ledger."""

    def __init__(self, wishes: Wishes, ledger: CollectorLedger) -> None:
        key = secrets.randbits(128)
        self.health = MirrorHealth(key) if wishes.health else None
        self._dedup = Deduplicator(wishes.dedup, key) if wishes.dedup else None
        self._reorder = Reorderer(wishes.reorder) if wishes.reorder else None
        self._ledger = ledger

    @property
    def window(self) -> float | None:
        """Seconds after which :meth:`due` should be asked; None if nothing ever waits."""
        return None if self._reorder is None else self._reorder.window / 1e9

    def take(self, delivery: Delivery, now: int) -> Delivery | None:
        """Return what the sinks are to get now; ``now`` in nanoseconds since the epoch."""
        if self.health is not None:
            self.health.take(delivery)
        if self._dedup is not None:
            again = self._dedup.find(delivery.frames, delivery.stream)
            if again.any():
                delivery = delivery.select(np.flatnonzero(~again))
                self._ledger.deduplicated += len(again) - len(delivery)
        if self._reorder is not None:
            return self._counted(self._reorder, self._reorder.put(delivery, now))
        return delivery if len(delivery) else None

    def due(self, now: int) -> Delivery | None:
        """Return what has waited long enough."""
        return self._counted(self._reorder, self._reorder.due(now)) if self._reorder else None

    def flush(self) -> Delivery | None:
        """Return all that waits, at the end."""
        return self._counted(self._reorder, self._reorder.flush()) if self._reorder else None

    def _counted(self, reorder: Reorderer, delivery: Delivery | None) -> Delivery | None:
        ledger = self._ledger
        ledger.waiting, ledger.late, ledger.hurried = reorder.held, reorder.late, reorder.hurried
        return delivery
