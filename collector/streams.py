"""Streams: what each mirror source sends, and what of it is missing.

A stream is one (outer source, encapsulation, identifier). Where its tunnel carries sequence numbers
(GRE, ERSPAN II and III) loss, order and duplicates are exact: a number that was passed over counts as
lost until it comes late, then as reordered; one that comes again is a duplicate. Numbers wrap at
2**32. A jump of more than 65,536 either way, or the number 0 again, is a sender that started anew.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from collector.ledger import StreamLedger
from tunnelbridge.batch import Column, Flags
from tunnelbridge.wire.layer import UNKNOWN, Codes, Kind

WRAP: Final = 1 << 32
WINDOW: Final = 1 << 16
MOST_GAPS: Final = 64
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
MOST_STREAMS: Final = 65_536
_KEY: Final = np.dtype(
    [("high", "=u8"), ("low", "=u8"), ("encapsulation", "=i8"), ("identifier", "=i8")]
)


@dataclass(slots=True)
class Sequence:
    """The sequence numbers of one stream, unwrapped: they only grow."""

    ledger: StreamLedger
    expected: int = UNKNOWN
    gaps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MOST_GAPS))
    """Numbers passed over, as (first, beyond), oldest first; the oldest gap is given up for lost."""

    def take(self, numbers: Column) -> None:
        """Account for the numbers of a batch, in the order in which they came."""
        if self.expected == UNKNOWN:
            self.expected = int(numbers[0])
        in_order = (self.expected + np.arange(len(numbers))) % WRAP
        if np.array_equal(numbers, in_order):
            self.expected += len(numbers)
            return
        for number in numbers.tolist():  # rare: only batches in which something is missing or late
            self._take_one(number)

    def _take_one(self, number: int) -> None:
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


class StreamTable:
    """All streams, bounded: what comes after the 65,536th is counted as one stream ``other``."""

    def __init__(self) -> None:
        self._streams: dict[bytes, Sequence] = {}
        self._other = Sequence(StreamLedger("other", "other", None))

    def ledgers(self) -> list[StreamLedger]:
        """Return the streams in the order in which they first came."""
        found = [stream.ledger for stream in self._streams.values()]
        return [*found, self._other.ledger] if self._other.ledger.packets else found

    def take(
        self,
        source: npt.NDArray[np.uint8],
        encapsulation: Codes,
        identifier: Column,
        sequence: Column,
        octets: Column,
        truncated: Flags,
    ) -> None:
        """Account for a batch of frames; ``source`` (m, 16), the rest (m,)."""
        keys = np.empty(len(source), _KEY)
        halves = np.ascontiguousarray(source).view(np.uint64)
        keys["high"], keys["low"] = halves[:, 0], halves[:, 1]
        keys["encapsulation"], keys["identifier"] = encapsulation, identifier
        for index in _groups(keys):
            first = keys[index][:1] if isinstance(index, slice) else keys[index[:1]]
            stream = self._stream(first.tobytes(), first[0])
            ledger = stream.ledger
            ledger.packets += len(octets[index])
            ledger.octets += int(octets[index].sum())
            ledger.truncated += int(truncated[index].sum())
            numbers = sequence[index]
            numbers = numbers[numbers != UNKNOWN]
            if len(numbers) and stream is not self._other:
                stream.take(numbers)

    def _stream(self, key: bytes, fields: np.void) -> Sequence:
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= MOST_STREAMS:
                return self._other
            address = ipaddress.IPv6Address(key[:16])
            identifier = int(fields["identifier"])
            ledger = StreamLedger(
                str(address.ipv4_mapped or address),
                Kind(int(fields["encapsulation"])).slug,
                None if identifier == UNKNOWN else identifier,
            )
            stream = self._streams[key] = Sequence(ledger)
        return stream


def _groups(keys: npt.NDArray[np.void]) -> Iterable[slice | npt.NDArray[np.int64]]:
    """Yield the positions of each distinct key; the whole batch at once where there is but one."""
    if not len(keys):
        return
    if (keys == keys[0]).all():
        yield slice(None)
        return
    # Records sort slowly: what is sorted is a number that tells them apart.
    words = keys.view(np.uint64).reshape(len(keys), -1)
    mixed = np.zeros(len(keys), np.uint64)
    for column in words.T:
        mixed = (mixed ^ column) * _ODD
        mixed ^= mixed >> np.uint64(29)
    _, inverse = np.unique(mixed, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    bounds = np.flatnonzero(np.diff(inverse[order])) + 1
    yield from np.split(order, bounds)
