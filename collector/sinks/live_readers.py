"""One reader of a live server: what it still has to get, what it got, and what it lost.

Readers share the octets of a block and differ in how far they are. A reader takes the front of a
block, as much as its queue has room for, in whole records; so what it gets is always a valid file.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from collector.sinks.live_records import Joined

SLOW: Final = "reader-slow"
GONE: Final = "reader-gone"
DISCARDED: Final = 1 << 12
"""Octets read at once of what a reader sends, which nobody wants."""


@dataclass(slots=True)
class ReaderLedger:
    """What became of the frames that one reader should have got."""

    name: str
    connected: bool = True
    sent: int = 0
    octets: int = 0
    queued: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return the reader as ``--stats`` writes it."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return fields | {"dropped": dict(self.dropped)}


class Block:
    """The records of one delivery on their way to all readers.

    What every reader got is delivered; ``settled`` is called once none of them waits any more.
    """

    def __init__(self, records: Joined, readers: int, settled: Callable[[Block], None]) -> None:
        self.records = records
        self.delivered = len(records)
        """Frames, from the first on, that all readers so far have got."""
        self.cause = ""
        self._waiting = readers
        self._settled = settled

    def done(self, delivered: int, cause: str) -> None:
        """Note that one reader got the first ``delivered`` frames and, for ``cause``, no more."""
        if delivered < self.delivered:
            self.delivered, self.cause = delivered, cause
        self._waiting -= 1
        if not self._waiting:
            self._settled(self)


@dataclass(slots=True)
class _Piece:
    """Octets that a reader waits for: of the preamble, or the first ``count`` records of a block."""

    octets: memoryview
    block: Block | None = None
    count: int = 0
    sent: int = 0


class Reader:
    """A connected reader; the socket is non-blocking and becomes the reader's own.

    :meth:`offer` and :meth:`flush` return False once the reader is gone: then :meth:`close` it.
    """

    def __init__(self, sock: socket.socket, name: str, most_octets: int) -> None:
        self.ledger = ReaderLedger(name)
        self._sock = sock
        self._most_octets = most_octets
        self._waiting: deque[_Piece] = deque()
        self._octets = 0
        self._known = 0
        """Parts of the preamble that are sent or queued."""

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._sock.fileno()

    @property
    def is_behind(self) -> bool:
        """Tell whether something waits for the socket to take more."""
        return bool(self._waiting)

    def begin(self, preamble: list[bytes]) -> bool:
        """Queue what this reader does not have of the preamble, and send what can be sent."""
        self._learn(preamble)
        return self.flush()

    def offer(self, block: Block, preamble: list[bytes]) -> bool:
        """Queue as many of the block's first records as there is room for, and send."""
        records = block.records
        room = self._most_octets - self._octets
        count = len(records)
        if self._waiting and len(records.octets) > room:
            count = int(np.searchsorted(records.ends, room, "right"))
            self.ledger.dropped[SLOW] += len(records) - count
        if not count:
            block.done(0, SLOW)
            return True
        self._learn(preamble)
        self._queue(_Piece(memoryview(records.octets)[: records.ends[count - 1]], block, count))
        self.ledger.queued += count
        return self.flush()

    def flush(self) -> bool:
        """Send what the socket takes; tell whether the reader is still there."""
        while self._waiting:
            piece = self._waiting[0]
            try:
                sent = self._sock.send(piece.octets[piece.sent :])
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            piece.sent += sent
            self._octets -= sent
            if piece.sent == len(piece.octets):
                self._waiting.popleft()
                self._settle(piece, SLOW)
        return True

    def is_gone(self) -> bool:
        """Take what the reader sent, which is of no interest; tell whether it hung up."""
        try:
            return not self._sock.recv(DISCARDED)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def close(self, cause: str = GONE) -> None:
        """Hang up; what the reader has not got is lost for ``cause``."""
        while self._waiting:
            self._settle(self._waiting.popleft(), cause)
        self.ledger.connected = False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._sock.close()

    def _learn(self, preamble: list[bytes]) -> None:
        if self._known < len(preamble):
            self._queue(_Piece(memoryview(b"".join(preamble[self._known :]))))
            self._known = len(preamble)

    def _queue(self, piece: _Piece) -> None:
        self._waiting.append(piece)
        self._octets += len(piece.octets)

    def _settle(self, piece: _Piece, cause: str) -> None:
        """Account for a piece of which ``sent`` octets went out, and no more will."""
        if piece.block is None:
            return
        records, ledger = piece.block.records, self.ledger
        whole = int(np.searchsorted(records.ends, piece.sent, "right"))
        ledger.queued -= piece.count
        ledger.sent += whole
        ledger.octets += int(records.frame_octets[whole - 1]) if whole else 0
        if whole < piece.count:
            ledger.dropped[cause] += piece.count - whole
        piece.block.done(whole, cause if whole < piece.count else SLOW)
