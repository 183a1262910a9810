"""The tap sink: frames onto a virtual interface that an IDS listens on."""

from __future__ import annotations

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.options import SinkOptions
from collector.sinks.selection import Selection
from tunnelbridge.linux.tap import open_tap


class TapSink:
    """Writes frames to a tap at once; a tap without readers takes them all the same.

    The target is ``[NETNS:]NAME``. Raises UsageError for a wrong name or filter, UserError where the
    tap cannot be had.
    """

    def __init__(self, options: SinkOptions) -> None:
        self._selection = Selection(options)
        namespace, separator, interface = options.target.rpartition(":")
        self._tap = open_tap(interface, namespace if separator else None)
        self.ledger = SinkLedger(f"tap {options.target}")

    def put(self, delivery: Delivery) -> None:
        """Write what the sink wants of the frames."""
        result = self._tap.write(self._selection.apply(delivery, self.ledger).frames)
        self.ledger.delivered += result.delivered
        self.ledger.octets += result.octets
        self.ledger.dropped.update(result.dropped)

    def tick(self, now: int) -> None:
        """Nothing is ever due."""

    def is_gone(self) -> bool:
        """Never: a tap takes frames whether somebody listens or not."""
        return False

    def close(self) -> None:
        """Take the tap away."""
        self._tap.close()
