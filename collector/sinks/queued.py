"""Sinks that may block: a writer thread behind a bounded queue, so that nobody else waits for them.

Large deliveries are queued where they were received and keep their slab from being used again.
Small ones are copied, so that single packets at night do not hold whole slabs; so are those that
come while too many slabs are held, by whatever sink. What does not fit in the queue is dropped and
counted.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import structlog

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.options import SinkOptions
from collector.sinks.selection import Selection
from tunnelbridge.linux.pcap_writer import Written
from tunnelbridge.linux.slab import Slab

SPARE_SLABS: Final = 2
"""Slabs that no queue ever holds, so that receiving always finds one."""
SMALL: Final = 64 << 10
PATIENCE: Final = 0.75
"""Seconds to wait for somebody who takes nothing, and for the queue at the end."""

T = TypeVar("T")
_Item = tuple[Delivery, Slab | None, int]


class QueuedSink:
    """The half of a sink that never blocks; :meth:`write` of a subclass is the other.

    A subclass calls :meth:`start` at the end of its ``__init__``. From then on ``write``,
    ``on_tick`` and ``finish`` are called in the writer thread, never two at once.

    Raises UsageError for a wrong filter.
    """

    def __init__(self, name: str, options: SinkOptions) -> None:
        self.ledger = SinkLedger(name)
        self._selection = Selection(options)
        self._most_octets = options.queue_octets
        self._octets = 0
        self._queue: queue.SimpleQueue[_Item | int | None] = queue.SimpleQueue()
        self._tick_waits = False
        self._deadline = math.inf
        self._error = ""
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._thread = threading.Thread(target=self._run, name=name[:15], daemon=True)

    def write(self, delivery: Delivery) -> Written:
        """Write frames; may block, but not much longer than :data:`PATIENCE` while nothing moves.

        Returns how many of them were written, their octets (of frames alone), and why the others
        were not, by the word they are counted under.
        """
        raise NotImplementedError

    def on_tick(self, now: int) -> None:
        """Do what is due at ``now`` (nanoseconds since the epoch): about once a second."""

    def finish(self) -> None:
        """Give back what ``write`` used: the thread's last call."""

    def is_gone(self) -> bool:
        """Tell whether nobody will ever take a frame from this sink again."""
        return False

    def start(self) -> None:
        """Let the writer thread begin."""
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Queue what the sink wants of the frames; never blocks."""
        delivery = self._selection.apply(delivery, self.ledger)
        if not len(delivery):
            return
        octets = int(delivery.frames.total_length.sum())
        with self.ledger.lock:
            if self._octets + octets > self._most_octets and self._octets > 0:
                self.ledger.dropped["queue-full"] += len(delivery)
                return
            self._octets += octets
            self.ledger.queued += len(delivery)
        slab = delivery.slab
        if slab is not None and octets >= SMALL and slab.spare >= SPARE_SLABS:
            slab.retain()
            self._queue.put((delivery, slab, octets))
        else:
            self._queue.put((delivery.copied(), None, octets))

    def tick(self, now: int) -> None:
        """Pass the time on to the writer thread, behind what is queued."""
        if not self._tick_waits:
            self._tick_waits = True
            self._queue.put(now)

    def close(self) -> None:
        """Write what is queued, as long as the other side takes it, and finish."""
        self._deadline = time.monotonic() + PATIENCE
        self._queue.put(None)
        self._thread.join(2 * PATIENCE)
        if self._thread.is_alive():  # stuck in a write that cannot be called off
            with self.ledger.lock:
                self.ledger.dropped["writer-stuck"] += self.ledger.queued
                self.ledger.queued = 0

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, int):
                self._tick_waits = False
                self._guarded(partial(self.on_tick, item), None)
                continue
            delivery, slab, octets = item
            result = Written(0, 0, "ended")
            if time.monotonic() < self._deadline:
                result = self._guarded(partial(self.write, delivery), Written(0, 0, "bug"))
            if slab is not None:
                slab.release()
            self._account(len(delivery), octets, result)
            self._tell(result.error or "")
        self._guarded(self.finish, None)

    def _guarded(self, call: Callable[[], T], otherwise: T) -> T:
        """Keep a bug in this sink from everybody else; the sink goes on if it can."""
        try:
            return call()
        except Exception:
            if self._error != "bug":
                self._error = "bug"
                self._log.exception("a bug in this sink", sink=self.ledger.name)
            return otherwise

    def _account(self, frames: int, octets: int, result: Written) -> None:
        ledger = self.ledger
        with ledger.lock:
            self._octets -= octets
            if not ledger.queued:  # close() did not wait for these, and has accounted for them
                return
            ledger.queued -= frames
            ledger.delivered += result.packets
            ledger.octets += result.octets
            if result.error and frames > result.packets:
                ledger.dropped[result.error] += frames - result.packets

    def _tell(self, error: str) -> None:
        """Log when writing begins to fail and when it works again, not for every batch."""
        if error in (self._error, "ended"):
            return
        if error:
            self._log.error("cannot write", sink=self.ledger.name, error=error)
        else:
            self._log.info("writing again", sink=self.ledger.name)
        self._error = error
