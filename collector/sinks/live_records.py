"""The records that live readers get: built once for each delivery, the same octets for everybody.

A reader may begin at any record, behind the preamble: what the file begins with, and its interfaces.
The preamble only ever grows, at its end, so a reader is owed what follows the part it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from collector.delivery import Delivery
from collector.sinks.formats import Pcapng, parse_format
from collector.sinks.options import SinkOptions
from tunnelbridge.batch import Column
from tunnelbridge.linux.pcap_writer import RECORD_HEADER
from tunnelbridge.records import Records

FORMAT: Final = "pcap-us"
"""What every reader understands."""
LONGEST: Final = 65_535 - RECORD_HEADER.itemsize
"""Arkime gives up a connection with longer frames: it has room for one record of 65535 octets."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The records of n frames in one piece."""

    octets: bytes
    ends: Column
    """Where each record ends."""
    frame_octets: Column
    """Octets of frames up to and with each one, without what the format adds."""

    def __len__(self) -> int:
        return len(self.ends)


class Encoder:
    """Makes records in the format that ``?format=`` names.

    ``name_of`` returns the name of the stream of that number. Raises UsageError for an unknown format.
    """

    def __init__(self, options: SinkOptions, name_of: Callable[[int], str]) -> None:
        name = options.more.get("format", FORMAT)
        self._format = parse_format(
            name, options.expression, options.snaplen, f"--serve {options.target}: format"
        )
        self._longest = options.snaplen if name != FORMAT else min(options.snaplen, LONGEST)
        self._name_of = name_of
        self._place: dict[int, int] = {}
        """Each stream's interface, in a format that has them."""
        self.preamble = [self._format.opening()]
        """In parts, of which readers count those that they have."""

    def encode(self, delivery: Delivery) -> Joined:
        """Return the frames' records; the preamble covers them when this returns."""
        delivery = delivery.cut(self._longest)
        place = np.zeros(len(delivery), np.int64)
        if isinstance(self._format, Pcapng):
            found, which = np.unique(delivery.stream, return_inverse=True)
            interfaces = [self._interface(stream) for stream in found.tolist()]
            place = np.array(interfaces, np.int64)[which]
        records = self._format.records(delivery, place)
        return _join(records, delivery.frames.total_length)

    def _interface(self, stream: int) -> int:
        """Return the interface of a stream, which is added to the preamble if it is new."""
        place = self._place.get(stream)
        if place is None:
            place = self._place[stream] = len(self._place)
            self.preamble.append(self._format.streams([self._name_of(stream)]))
        return place


def _join(records: Records, lengths: Column) -> Joined:
    """Copy gather lists into one piece; the loop over them is the interpreter's, not ours."""
    columns = [
        map(piece.memory.data.__getitem__, map(slice, start, end))
        for piece in records.pieces
        for start, end in [(piece.start.tolist(), (piece.start + piece.length).tolist())]
    ]
    octets = b"".join([piece for pieces in zip(*columns, strict=True) for piece in pieces])
    return Joined(octets, np.cumsum(records.size), np.cumsum(lengths))
