"""One capture file that is being written, and what is known of what is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from collector.delivery import Delivery
from collector.ledger import StreamLedger
from collector.sinks.formats import Format
from tunnelbridge.batch import Column, Flags
from tunnelbridge.capture.pcapng_out import Statistics
from tunnelbridge.linux.record_writer import RecordWriter, Written
from tunnelbridge.records import Records

StreamNames = Callable[[int], StreamLedger]
"""Returns the ledger of the stream with that number."""

_RECEIVED, _WRITTEN, _LOST, _TRUNCATED = range(4)
_ROOM: Final = 64
"""Streams that a file has room to count at first."""


@dataclass(slots=True)
class Summary:
    """What a file holds; times in nanoseconds since the epoch, ``octets`` those of the frames."""

    first: int = 0
    last: int = 0
    packets: int = 0
    octets: int = 0
    lost: int = 0
    dropped: int = 0
    truncated: int = 0
    streams: list[str] = field(default_factory=list)
    recovered: bool = False
    """The file was left over by a collector that was killed."""

    def add(self, time: Column, octets: int) -> None:
        """Count packets that have been written."""
        if len(time):
            first, last = int(time.min()), int(time.max())
            self.first = min(self.first, first) if self.packets else first
            self.last = max(self.last, last) if self.packets else last
            self.packets += len(time)
            self.octets += octets


class CaptureFile:
    """A file of one format behind an open descriptor, which stays the caller's to close."""

    def __init__(
        self, fd: int, form: Format, streams: StreamNames, opened: int, patience: float = 1.0
    ) -> None:
        opening = form.opening()
        self.summary = Summary()
        self.size = len(opening)
        """Octets of the file, once everything that is owed has been written."""
        self._form = form
        self._streams = streams
        self._opened = opened
        self._writer = RecordWriter(fd, opening, patience)
        self._places = np.full(_ROOM, -1)
        self._counts = np.zeros((_ROOM, 4), np.int64)

    def records(self, delivery: Delivery) -> Records:
        """Return frames as this file's records; announces streams that are new in it."""
        return self._form.records(delivery, self._place(delivery.stream))

    def write(self, delivery: Delivery) -> Written:
        """Write frames; returns how many, their octets (of frames alone), and what went wrong."""
        place = self._place(delivery.stream)
        result = self._writer.write(self._form.records(delivery, place))
        self._count(_RECEIVED, place)
        self._count(_WRITTEN, place[: result.packets])
        if delivery.gap.any():
            self._count(_LOST, place, delivery.gap)
        if delivery.truncated.any():
            self._count(_TRUNCATED, place, delivery.truncated)
        octets = int(delivery.frames.total_length[: result.packets].sum())
        self.summary.add(delivery.frames.timestamp[: result.packets], octets)
        self.size += result.octets
        return Written(result.packets, octets, result.error)

    def finish(self, now: int) -> Summary:
        """Write the end of the file, if there is room for it; return what the file holds."""
        known = len(self.summary.streams)
        counts = self._counts[:known].tolist()
        told = [
            Statistics(self._opened, now, received, lost, received - written)
            for received, written, lost, _ in counts
        ]
        if self._writer.error in (None, "disk-full"):  # a reader that takes nothing had its time
            self._writer.owe(self._form.closing(told))
            self._writer.settle()
        summary, total = self.summary, self._counts.sum(axis=0)
        summary.lost, summary.truncated = int(total[_LOST]), int(total[_TRUNCATED])
        summary.dropped = int(total[_RECEIVED] - total[_WRITTEN])
        return summary

    def _place(self, stream: Column) -> Column:
        """Return each frame's stream as its number in this file."""
        if int(stream.max(initial=0)) >= len(self._places):
            self._places = _grown(self._places, int(stream.max()) + 1, -1)
        place = self._places[stream]
        if (place < 0).any():
            self._announce(np.unique(stream[place < 0]))
            place = self._places[stream]
        return place

    def _announce(self, streams: Column) -> None:
        known = len(self.summary.streams)
        self._places[streams] = known + np.arange(len(streams))
        names = [self._streams(number).key() for number in streams.tolist()]
        self.summary.streams += names
        if len(self.summary.streams) > len(self._counts):
            self._counts = _grown(self._counts, len(self.summary.streams), 0)
        announced = self._form.streams(names)
        self._writer.owe(announced)
        self.size += len(announced)

    def _count(self, what: int, place: Column, weight: Column | Flags | None = None) -> None:
        counted = np.bincount(place, weight, len(self._counts))
        self._counts[:, what] += counted.astype(np.int64)


def _grown(array: Column, size: int, value: int) -> Column:
    """Return a copy with room for at least ``size`` rows, new ones filled with ``value``."""
    grown = np.full((max(size, 2 * len(array)), *array.shape[1:]), value)
    grown[: len(array)] = array
    return grown
