"""The tap sink: frames onto a virtual interface that an IDS listens on."""

from __future__ import annotations

from collector.ledger import SinkLedger
from tunnelbridge.batch import Batch
from tunnelbridge.linux.slab import Slab
from tunnelbridge.linux.tap import open_tap


class TapSink:
    """Writes frames to a tap at once; a tap without readers takes them all the same."""

    def __init__(self, name: str) -> None:
        namespace, separator, interface = name.rpartition(":")
        self._tap = open_tap(interface, namespace if separator else None)
        self.ledger = SinkLedger(f"tap {name}")

    def put(self, frames: Batch, slab: Slab) -> None:
        """Deliver a batch."""
        result = self._tap.write(frames)
        self.ledger.delivered += result.delivered
        self.ledger.octets += result.octets
        self.ledger.dropped.update(result.dropped)

    def is_gone(self) -> bool:
        """Never: a tap takes frames whether somebody listens or not."""
        return False

    def close(self) -> None:
        """Take the tap away."""
        self._tap.close()
