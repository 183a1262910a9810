"""Streams: what each mirror source sends, and what of it is missing.

A stream is one (outer source, encapsulation, identifier). Where its tunnel carries sequence numbers
(GRE, ERSPAN II and III) loss, order and duplicates are exact: a number that was passed over counts as
lost until it comes late, then as reordered; one that comes again is a duplicate. Numbers wrap at
2**32. A jump of more than 65,536 either way, or the number 0 again, is a sender that started anew.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from collector.grouping import groups, keys
from collector.ledger import StreamLedger
from tunnelbridge.batch import Column, Flags, zeros
from tunnelbridge.wire.layer import UNKNOWN, Codes, Kind

WRAP: Final = 1 << 32
WINDOW: Final = 1 << 16
MOST_GAPS: Final = 64
MOST_STREAMS: Final = 65_536


@dataclass(slots=True)
class Sequence:
    """The sequence numbers of one stream, unwrapped: they only grow."""

    ledger: StreamLedger
    expected: int = UNKNOWN
    gaps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MOST_GAPS))
    """Numbers passed over, as (first, beyond), oldest first; the oldest gap is given up for lost."""

    def take(self, numbers: Column) -> Column | None:
        """Account for the numbers of a batch, in the order in which they came.

        Returns how many numbers were passed over right before each, None where none was.
        """
        missing = self._take(numbers)
        self.ledger.sequence_next = self.expected % WRAP
        return missing

    def _take(self, numbers: Column) -> Column | None:
        if self.expected == UNKNOWN:
            self.expected = self.ledger.sequence_first = int(numbers[0])
        in_order = (self.expected + np.arange(len(numbers))) % WRAP
        if np.array_equal(numbers, in_order):
            self.expected += len(numbers)
            return None
        # rare: only batches in which something is missing or late
        return np.array([self._take_one(number) for number in numbers.tolist()], np.int64)

    def _take_one(self, number: int) -> int:
        ahead = (number - self.expected + WRAP // 2) % WRAP - WRAP // 2
        unwrapped = self.expected + ahead
        if ahead == 0:
            self.expected += 1
        elif ahead < 0 and self._fill(unwrapped):
            self.ledger.lost -= 1
            self.ledger.reordered += 1
        elif abs(ahead) > WINDOW or (number == 0 and ahead < 0):
            self.ledger.restarts += 1
            self.gaps.clear()
            self.expected = number + 1
        elif ahead < 0:
            self.ledger.duplicate += 1
        else:
            self.ledger.lost += ahead
            self.gaps.append((self.expected, unwrapped))
            self.expected = unwrapped + 1
            return ahead
        return 0

    def _fill(self, number: int) -> bool:
        """Take a late number out of its gap; False if it was not missing."""
        for place, (first, beyond) in enumerate(self.gaps):
            if first <= number < beyond:
                rest = [
                    part for part in ((first, number), (number + 1, beyond)) if part[0] < part[1]
                ]
                gaps = list(self.gaps)
                gaps[place : place + 1] = rest
                self.gaps.clear()
                self.gaps.extend(gaps)
                return True
        return False


@dataclass(slots=True)
class Stream:
    """One stream: its number, its counters and where its sequence stands."""

    number: int
    ledger: StreamLedger
    sequence: Sequence = field(init=False)

    def __post_init__(self) -> None:
        self.sequence = Sequence(self.ledger)


class StreamTable:
    """All streams, bounded: what comes after the 65,536th is counted as one stream ``other``.

    A stream's number is its place in :meth:`ledgers` and never changes.
    """

    def __init__(self) -> None:
        self._streams: dict[bytes, Stream] = {}
        self._ledgers: list[StreamLedger] = []
        self._other: Stream | None = None

    def ledgers(self) -> list[StreamLedger]:
        """Return the streams in the order in which they first came."""
        return self._ledgers.copy()

    def ledger(self, number: int) -> StreamLedger:
        """Return the stream of that number; may be called from any thread."""
        return self._ledgers[number]

    def take(
        self,
        source: npt.NDArray[np.uint8],
        encapsulation: Codes,
        identifier: Column,
        sequence: Column,
        octets: Column,
        truncated: Flags,
        timestamp: Column,
    ) -> tuple[Column, Column]:
        """Account for a batch of frames; ``source`` (m, 16), the rest (m,).

        Returns each frame's stream, and how many sequence numbers were missing right before it.
        """
        number, gap = zeros(len(source)), zeros(len(source))
        for key, index in groups(keys(source, encapsulation, identifier)):
            stream = self._stream(key)
            number[index] = stream.number
            _count(stream.ledger, octets[index], truncated[index], timestamp[index])
            if stream is not self._other:
                missing = _missing(stream.sequence, sequence[index])
                if missing is not None:
                    gap[index] = missing
        return number, gap

    def _stream(self, key: np.void) -> Stream:
        name = key.tobytes()
        stream = self._streams.get(name)
        if stream is None:
            if len(self._streams) >= MOST_STREAMS:
                return self._others()
            address = ipaddress.IPv6Address(name[:16])
            identifier = int(key["second"])
            stream = self._streams[name] = self._add(
                str(address.ipv4_mapped or address),
                Kind(int(key["first"])).slug,
                None if identifier == UNKNOWN else identifier,
            )
        return stream

    def _others(self) -> Stream:
        if self._other is None:
            self._other = self._add("other", "other", None)
        return self._other

    def _add(self, source: str, encapsulation: str, identifier: int | None) -> Stream:
        stream = Stream(len(self._ledgers), StreamLedger(source, encapsulation, identifier))
        self._ledgers.append(stream.ledger)
        return stream


def _count(ledger: StreamLedger, octets: Column, truncated: Flags, timestamp: Column) -> None:
    if not ledger.packets:
        ledger.first_seen = int(timestamp[0])
    ledger.last_seen = int(timestamp[-1])
    ledger.packets += len(octets)
    ledger.octets += int(octets.sum())
    ledger.truncated += int(truncated.sum())


def _missing(sequence: Sequence, numbers: Column) -> Column | None:
    """Account for the numbers of one stream's frames, some of which may have none."""
    known = numbers != UNKNOWN
    if known.all():
        return sequence.take(numbers)
    if not known.any():
        return None
    missing = sequence.take(numbers[known])
    if missing is None:
        return None
    gap = zeros(len(numbers))
    gap[known] = missing
    return gap
