"""The tap sink: frames onto a virtual interface that an IDS listens on."""

from __future__ import annotations

import numpy as np

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.flows import FlowReader
from collector.sinks.options import SinkOptions
from collector.sinks.selection import Selection
from tunnelbridge.batch import Batch
from tunnelbridge.linux.tap import SHORTEST, Tap, open_tap
from tunnelbridge.wire.flow import Words


class TapSink:
    """Writes frames to a tap at once; a tap without readers takes them all the same.

    The target is ``[NETNS:]NAME``. With several queues, both directions of a flow keep to one of
    them. Raises UsageError for a wrong name or filter, UserError where the tap cannot be had.
    """

    def __init__(self, options: SinkOptions, queues: int = 1) -> None:
        self._selection = Selection(options)
        namespace, separator, interface = options.target.rpartition(":")
        self._tap = open_tap(interface, namespace if separator else None, queues)
        self._flows = FlowReader()
        self.ledger = SinkLedger(f"tap {options.target}")

    def put(self, delivery: Delivery) -> None:
        """Write what the sink wants of the frames."""
        frames = self._selection.apply(delivery, self.ledger).frames
        if self._tap.queues == 1:
            write(self._tap, frames, self.ledger)
            return
        queue = self._queue(frames)
        for number in np.unique(queue).tolist():
            write(self._tap, frames.select(np.flatnonzero(queue == number)), self.ledger, number)

    def _queue(self, frames: Batch) -> Words:
        """Return the queue of each frame; the first for one that is too short to be written."""
        queue = np.zeros(len(frames), np.uint64)
        whole = np.flatnonzero(frames.total_length >= SHORTEST)
        if whole.size:
            hashes = self._flows.read(frames.select(whole)).hash
            queue[whole] = (hashes >> np.uint64(32)) * np.uint64(self._tap.queues) >> np.uint64(32)
        return queue

    def tick(self, now: int) -> None:
        """Nothing is ever due."""

    def is_gone(self) -> bool:
        """Never: a tap takes frames whether somebody listens or not."""
        return False

    def close(self) -> None:
        """Take the tap away."""
        self._tap.close()


def write(tap: Tap, frames: Batch, ledger: SinkLedger, queue: int = 0) -> None:
    """Write frames by one queue of a tap and account for them."""
    result = tap.write(frames, queue)
    ledger.delivered += result.delivered
    ledger.octets += result.octets
    ledger.dropped.update(result.dropped)
