"""The pcap sink: a writer thread behind a bounded queue, so a stalled disk stalls nobody else.

Large batches are queued where they were received and keep their slab from being used again. Small
ones are copied, so that single packets at night do not hold whole slabs; so are those that come when
too many slabs are held already, because a slab that is queued may be far from full. What does not
fit in the queue is dropped and counted.
"""

from __future__ import annotations

import math
import os
import queue
import select
import threading
import time
from typing import Final

import numpy as np
import structlog

from collector.ledger import SinkLedger
from tunnelbridge.batch import Batch
from tunnelbridge.linux.pcap_writer import RECORD_HEADER, PcapWriter, Written, open_pcap
from tunnelbridge.linux.slab import Slab
from tunnelbridge.wire.octets import ragged

QUEUED_SLABS: Final = 4
"""Fewer than there are slabs, so that receiving always finds a free one."""
QUEUED_OCTETS: Final = 32 << 20
SMALL: Final = 64 << 10
PATIENCE: Final = 0.75
"""Seconds to wait for a reader that takes nothing, and for the queue at the end."""


class PcapSink:
    """Writes frames to a pcap file or standard output (``-``)."""

    def __init__(self, path: str) -> None:
        self.ledger = SinkLedger(f"pcap {path}")
        self._fd = open_pcap(path)
        self._writer = PcapWriter(self._fd, patience=PATIENCE)
        self._deadline = math.inf
        self._queue: queue.SimpleQueue[tuple[Batch, Slab | None, int] | None] = queue.SimpleQueue()
        self._slabs = threading.Semaphore(QUEUED_SLABS)
        self._octets = 0
        self._error = ""
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._thread = threading.Thread(target=self._write_all, name="pcap writer", daemon=True)
        self._thread.start()

    def put(self, frames: Batch, slab: Slab) -> None:
        """Queue a batch for writing; never blocks."""
        octets = int(frames.total_length.sum())
        with self.ledger.lock:
            if self._octets + octets > QUEUED_OCTETS and self._octets > 0:
                self.ledger.dropped["queue-full"] += len(frames)
                return
            self._octets += octets
            self.ledger.queued += len(frames)
        if octets >= SMALL and self._slabs.acquire(blocking=False):
            slab.retain()
            self._queue.put((frames, slab, octets))
        else:
            self._queue.put((_copy(frames), None, octets))

    def is_gone(self) -> bool:
        """Tell whether the reader of a pipe has gone, even while there is nothing to write."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def close(self) -> None:
        """Write what is queued, as long as the other side takes it, and close the file."""
        self._deadline = time.monotonic() + PATIENCE
        self._queue.put(None)
        self._thread.join(2 * PATIENCE)
        if self._thread.is_alive():  # stuck in a write that cannot be called off
            with self.ledger.lock:
                self.ledger.dropped["writer-stuck"] += self.ledger.queued
                self.ledger.queued = 0
            return
        os.close(self._fd)

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            frames, slab, octets = item
            result = Written(0, 0, "ended")
            if time.monotonic() < self._deadline:
                result = self._writer.write(frames)
            if slab is not None:
                slab.release()
                self._slabs.release()
            self._account(frames, octets, result)
            self._tell(result.error or "")

    def _account(self, frames: Batch, octets: int, result: Written) -> None:
        ledger = self.ledger
        with ledger.lock:
            self._octets -= octets
            if not ledger.queued:  # close() did not wait for this batch, and has accounted for it
                return
            ledger.queued -= len(frames)
            ledger.delivered += result.packets
            ledger.octets += result.octets - result.packets * RECORD_HEADER.itemsize
            if result.error:
                ledger.dropped[result.error] += len(frames) - result.packets

    def _tell(self, error: str) -> None:
        """Log when writing begins to fail and when it works again, not for every batch."""
        if error in (self._error, "ended"):
            return
        if error:
            self._log.error("cannot write", sink=self.ledger.name, error=error)
        else:
            self._log.info("writing again", sink=self.ledger.name)
        self._error = error


def _copy(frames: Batch) -> Batch:
    """Return the frames over memory of their own."""
    copied = frames.select(np.arange(len(frames)))
    copied.memory = frames.memory[ragged(frames.start, frames.length)]
    copied.start = np.cumsum(frames.length) - frames.length
    return copied
