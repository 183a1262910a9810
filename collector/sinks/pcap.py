"""The pcap sink: one file, a pipe, or standard output."""

from __future__ import annotations

import os
import select
import time

from collector.delivery import Delivery
from collector.ledger import StreamLedger
from collector.sinks.capture_file import CaptureFile, StreamNames
from collector.sinks.formats import Format, Pcap
from collector.sinks.options import SinkOptions
from collector.sinks.queued import PATIENCE, QueuedSink
from tunnelbridge.linux.pcap_writer import open_pcap
from tunnelbridge.linux.record_writer import Written


def _unnamed(number: int) -> StreamLedger:
    return StreamLedger("other", "stream", number)


class PcapSink(QueuedSink):
    """Writes frames to a capture file or standard output (``-``).

    ``streams`` tells the names of streams, for formats that have them in the file.
    Raises UserError where the file cannot be written, UsageError for a terminal or a wrong filter.
    """

    def __init__(
        self, options: SinkOptions, form: Format | None = None, streams: StreamNames = _unnamed
    ) -> None:
        super().__init__(f"pcap {options.target}", options)
        self._fd = open_pcap(options.target)
        self._file = CaptureFile(self._fd, form or Pcap(), streams, time.time_ns(), PATIENCE)
        self.start()

    def write(self, delivery: Delivery) -> Written:
        """Write frames as records."""
        return self._file.write(delivery)

    def finish(self) -> None:
        """Write the end of the file and close it."""
        self._file.finish(time.time_ns())
        os.close(self._fd)

    def is_gone(self) -> bool:
        """Tell whether the reader of a pipe has gone, even while there is nothing to write."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
