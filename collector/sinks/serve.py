"""The live server: PCAP-over-IP, for any number of readers at once.

Who connects gets a file header and then whatever is delivered from then on, as a capture file that
never ends: ``wireshark -k -i TCP@host:57012``, Arkime's ``pcap-over-ip-client``, or
``nc host 57012 | suricata -r /dev/stdin``. Everything happens on the collector's loop and nothing
there waits for a reader: one that is slow loses whole frames, one that is dead is hung up on.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.live_readers import Block, Reader, ReaderLedger
from collector.sinks.live_records import Encoder
from collector.sinks.live_socket import accept, is_loopback, open_server, parse_where, where
from collector.sinks.options import SinkOptions
from collector.sinks.selection import Selection

MOST_READERS: Final = 32
MOST_REMEMBERED: Final = 64
"""Readers in the ledger, those that are gone included."""
PATIENCE: Final = 0.75
"""Seconds that readers have at the end to take what waits for them."""


@dataclass(slots=True)
class ServeLedger(SinkLedger):
    """The sink's frames, and beside them what became of each reader's.

    Delivered is what all who were connected got, dropped what at least one of them did not get;
    frames that nobody was there for are filtered.
    """

    readers: list[ReaderLedger] = field(default_factory=list)
    refused: int = 0
    """Connections that were one too many."""

    def as_dict(self) -> dict[str, Any]:
        """Return the sink as ``--stats`` writes it."""
        told = SinkLedger.as_dict(self)
        return told | {
            "refused": self.refused,
            "readers": [reader.as_dict() for reader in self.readers],
        }

    def remember(self, reader: ReaderLedger) -> None:
        """Add a reader, and forget the one that has been gone longest if there are many."""
        if len(self.readers) >= MOST_REMEMBERED:
            self.readers.remove(next(old for old in self.readers if not old.connected))
        self.readers.append(reader)


class ServeSink:
    """Serves frames on a TCP port once :meth:`listen` is called.

    The target is ``HOST:PORT``, ``HOST`` or ``PORT``; the queue is each reader's own. ``name_of``
    returns the name of the stream of that number. Raises UsageError for a wrong target, filter or
    format, UserError where the port cannot be had.
    """

    def __init__(self, options: SinkOptions, name_of: Callable[[int], str]) -> None:
        host, port = parse_where(options.target)
        self._selection = Selection(options)
        self._encoder = Encoder(options, name_of)
        self._most_octets = options.queue_octets
        self._readers: dict[int, Reader] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._socket = open_server(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._told = ServeLedger(f"serve {where(host, self.port)}")
        self.ledger: SinkLedger = self._told
        if not is_loopback(host):
            self._log.warning("whoever reaches this port sees the frames", sink=self.ledger.name)

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let readers connect from now on."""
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._accept)

    def put(self, delivery: Delivery) -> None:
        """Send what the sink wants of the frames to all readers; what they do not take, wait."""
        if not self._readers:
            self.ledger.filtered += len(delivery)
            return
        delivery = self._selection.apply(delivery, self.ledger)
        if not len(delivery):
            return
        self.ledger.queued += len(delivery)
        records = self._encoder.encode(delivery)
        readers = list(self._readers.values())
        block = Block(records, len(readers), self._settle)
        for reader in readers:
            self._go_on(reader, reader.offer(block, self._encoder.preamble))

    def tick(self, now: int) -> None:
        """Accept again, should that have failed for want of file descriptors."""
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def is_gone(self) -> bool:
        """Never: a reader may always come."""
        return False

    def close(self) -> None:
        """Stop serving; readers may take for a moment what waits for them."""
        if self._socket.fileno() < 0:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._flush(time.monotonic() + PATIENCE)
        for reader in list(self._readers.values()):
            self._hang_up(reader, "ended")

    def _flush(self, deadline: float) -> None:
        """Send what waits, until nothing does or ``deadline``."""
        poll = select.poll()
        behind = {reader.fileno(): reader for reader in self._readers.values() if reader.is_behind}
        for fd in behind:
            poll.register(fd, select.POLLOUT)
        while behind and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                reader = behind[fd]
                if not reader.flush() or not reader.is_behind:
                    poll.unregister(fd)
                    del behind[fd]

    def _accept(self) -> None:
        try:
            sock, name = accept(self._socket)
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no file descriptors left: not again before the next tick
            self._log.error("cannot accept", sink=self.ledger.name, reason=error.strerror)
            if self._loop is not None:
                self._loop.remove_reader(self._socket.fileno())
            return
        if len(self._readers) >= MOST_READERS:
            self._told.refused += 1
            sock.close()
            return
        self._welcome(Reader(sock, name, self._most_octets))

    def _welcome(self, reader: Reader) -> None:
        self._readers[reader.fileno()] = reader
        self._told.remember(reader.ledger)
        self._log.info("reader connected", sink=self.ledger.name, reader=reader.ledger.name)
        if self._loop is not None:
            self._loop.add_reader(reader.fileno(), self._on_readable, reader)
        self._go_on(reader, reader.begin(self._encoder.preamble))

    def _on_readable(self, reader: Reader) -> None:
        if reader.is_gone():
            self._hang_up(reader)

    def _on_writable(self, reader: Reader) -> None:
        self._go_on(reader, reader.flush())

    def _go_on(self, reader: Reader, is_there: bool) -> None:
        """After sending: wait for room where something is left, hang up on who is gone."""
        if not is_there:
            self._hang_up(reader)
        elif self._loop is None:
            return
        elif reader.is_behind:
            self._loop.add_writer(reader.fileno(), self._on_writable, reader)
        else:
            self._loop.remove_writer(reader.fileno())

    def _hang_up(self, reader: Reader, cause: str = "reader-gone") -> None:
        fd = reader.fileno()
        if self._loop is not None:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
        del self._readers[fd]
        reader.close(cause)
        told = reader.ledger
        self._log.info(
            "reader gone",
            sink=self.ledger.name,
            reader=told.name,
            sent=told.sent,
            dropped=dict(told.dropped),
        )

    def _settle(self, block: Block) -> None:
        """Account for frames that no reader waits for any more."""
        ledger, frames = self.ledger, len(block.records)
        ledger.queued -= frames
        ledger.delivered += block.delivered
        if block.delivered:
            ledger.octets += int(block.records.frame_octets[block.delivered - 1])
        if block.delivered < frames:
            ledger.dropped[block.cause] += frames - block.delivered
