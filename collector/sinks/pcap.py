"""The pcap sink: one file, a pipe, or standard output."""

from __future__ import annotations

import os
import select

from collector.delivery import Delivery
from collector.sinks.options import SinkOptions
from collector.sinks.queued import PATIENCE, QueuedSink
from tunnelbridge.linux.pcap_writer import RECORD_HEADER, PcapWriter, Written, open_pcap


class PcapSink(QueuedSink):
    """Writes frames to a pcap file or standard output (``-``).

    Raises UserError where the file cannot be written, UsageError for a terminal or a wrong filter.
    """

    def __init__(self, options: SinkOptions) -> None:
        super().__init__(f"pcap {options.target}", options)
        self._fd = open_pcap(options.target)
        self._writer = PcapWriter(self._fd, patience=PATIENCE)
        self.start()

    def write(self, delivery: Delivery) -> Written:
        """Write frames as records."""
        result = self._writer.write(delivery.frames)
        headers = result.packets * RECORD_HEADER.itemsize
        return result._replace(octets=result.octets - headers)

    def finish(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def is_gone(self) -> bool:
        """Tell whether the reader of a pipe has gone, even while there is nothing to write."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
