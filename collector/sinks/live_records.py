"""The records that live readers get: built once for each delivery, the same octets for everybody.

A reader may begin at any record, behind the preamble: what describes the file and its interfaces.
The preamble only ever grows, at its end, so a reader is owed what follows the part it has.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from collector.delivery import Delivery
from collector.sinks.options import SinkOptions
from tunnelbridge.batch import Column
from tunnelbridge.capture import pcapng_out
from tunnelbridge.linux import pcap_writer
from tunnelbridge.linux.pcap_writer import MICROSECONDS, NANOSECONDS, RECORD_HEADER, pcap_records
from tunnelbridge.records import Records

FORMATS: Final = ("pcap-us", "pcap", "pcapng")
"""Microseconds first: what every reader understands."""
ARKIMES_SNAPLEN: Final = 65_535 - RECORD_HEADER.itemsize
"""Arkime gives up a connection with records longer than 65535 octets (reader-pcapoverip.c)."""
APPLICATION: Final = "tunnelbridge collector"


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


class Encoder(Protocol):
    """Makes records in one format."""

    preamble: list[bytes]
    """In parts, of which readers count those that they have."""

    def encode(self, delivery: Delivery) -> Joined:
        """Return the frames' records; the preamble covers them when this returns."""


class PcapEncoder:
    """Classic pcap; times are rounded down to ``resolution`` parts of a second."""

    def __init__(self, resolution: int, snaplen: int) -> None:
        self._resolution, self._snaplen = resolution, snaplen
        self.preamble = [pcap_writer.file_header(resolution, snaplen=snaplen)]

    def encode(self, delivery: Delivery) -> Joined:
        """Return one record per frame."""
        frames = delivery.frames.cut(self._snaplen)
        return _join(pcap_records(frames, self._resolution), frames.total_length)


class PcapngEncoder:
    """pcapng with an interface per stream, told of when the stream first appears.

    ``name_of`` returns the name of the stream of that number.
    """

    def __init__(self, name_of: Callable[[int], str], expression: str = "") -> None:
        self._name_of = name_of
        self._expression = expression
        self._interface: dict[int, int] = {}
        self.preamble = [pcapng_out.section(APPLICATION, platform.node())]

    def encode(self, delivery: Delivery) -> Joined:
        """Return one enhanced packet block per frame."""
        frames = delivery.frames.cut(pcapng_out.SNAPLEN)
        found, which = np.unique(delivery.stream, return_inverse=True)
        numbers = np.array([self._number(stream) for stream in found.tolist()], np.int64)
        records = pcapng_out.packet_records(
            frames, numbers[which], delivery.gap, delivery.truncated
        )
        return _join(records, frames.total_length)

    def _number(self, stream: int) -> int:
        """Return the interface of a stream, which is added to the preamble if it is new."""
        number = self._interface.get(stream)
        if number is None:
            number = self._interface[stream] = len(self._interface)
            block = pcapng_out.interface(self._name_of(stream), expression=self._expression)
            self.preamble.append(block)
        return number


def encoder(kind: str, options: SinkOptions, name_of: Callable[[int], str]) -> Encoder:
    """Return the encoder for one of :data:`FORMATS`."""
    if kind == "pcapng":
        return PcapngEncoder(name_of, options.expression)
    if kind == "pcap":
        return PcapEncoder(NANOSECONDS, pcap_writer.SNAPLEN)
    return PcapEncoder(MICROSECONDS, ARKIMES_SNAPLEN)


def _join(records: Records, lengths: Column) -> Joined:
    """Copy gather lists into one piece; the loop over them is the interpreter's, not ours."""
    columns = [
        map(piece.memory.data.__getitem__, map(slice, start, end))
        for piece in records.pieces
        for start, end in [(piece.start.tolist(), (piece.start + piece.length).tolist())]
    ]
    octets = b"".join([piece for pieces in zip(*columns, strict=True) for piece in pieces])
    return Joined(octets, np.cumsum(records.size), np.cumsum(lengths))
