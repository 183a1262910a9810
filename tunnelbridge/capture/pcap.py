"""Read classic pcap: micro- and nanoseconds, either byte order, and Kuznetzov's longer records.

Format: draft-ietf-opsawg-pcap; the "modified" record of 24 octets: libpcap sf-pcap.c
(struct pcap_sf_patched_pkthdr), whose packet type tells which packets the host itself sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from tunnelbridge.batch import INBOUND, OUTBOUND, Batch, Column, Octets
from tunnelbridge.capture.progress import CaptureBatch, Progress
from tunnelbridge.wire import octets

MINIMUM_LIMIT: Final = 262144
"""Octets a record may have whatever the file's snap length says: many say 65535, and then hold
super-packets of 64 KiB and an Ethernet header. It is libpcap's largest snap length too."""
MAXIMUM_LIMIT: Final = 1 << 27
"""Octets no record exceeds, even where the file claims a larger snap length."""

_FILE_HEADER: Final = 24
_PACKET_OUTGOING: Final = 4


class Format(NamedTuple):
    """What a magic number says about the records that follow."""

    order: str
    unit: int
    """Nanoseconds in one count of the timestamp's fraction."""
    modified: bool


FORMATS: Final = {
    bytes.fromhex("a1b2c3d4"): Format(">", 1000, False),
    bytes.fromhex("d4c3b2a1"): Format("<", 1000, False),
    bytes.fromhex("a1b23c4d"): Format(">", 1, False),
    bytes.fromhex("4d3cb2a1"): Format("<", 1, False),
    bytes.fromhex("a1b2cd34"): Format(">", 1000, True),
    bytes.fromhex("34cdb2a1"): Format("<", 1000, True),
}


def batches(memory: Octets, size: int, progress: Progress) -> Iterator[CaptureBatch]:
    """Yield the packets of a pcap file in batches of at most ``size``, over ``memory`` itself.

    Stops at the first record that cannot be right, and tells ``progress`` which and why.
    ``memory`` begins with one of the magics in :data:`FORMATS`.
    """
    file_format = FORMATS[memory[:4].tobytes()]
    if memory.size < _FILE_HEADER:
        progress.stop(
            0, f"the file header is cut short (needs {_FILE_HEADER} octets, {memory.size} left)"
        )
        return
    snaplen, linktype = struct.unpack_from(file_format.order + "II", memory.data, 16)
    limit = min(max(snaplen, MINIMUM_LIMIT), MAXIMUM_LIMIT)
    header = _record_header(file_format)
    progress.reach(_FILE_HEADER)
    for found in _records(memory, size, limit, header.itemsize, file_format.order, progress):
        batch = _columns(memory, np.array(found, np.int64), header, file_format)
        yield CaptureBatch(batch, linktype & 0xFFFF)  # the high half tells of the FCS


def _record_header(file_format: Format) -> np.dtype[Any]:
    word = file_format.order + "u4"
    names = ["seconds", "fraction", "captured", "original"]
    fields: list[tuple[str, str]] = [(name, word) for name in names]
    if file_format.modified:
        fields += [("interface", word), ("protocol", file_format.order + "u2")]
        fields += [("packet_type", "u1"), ("_pad", "u1")]
    return np.dtype(fields)


def _records(
    memory: Octets, size: int, limit: int, span: int, order: str, progress: Progress
) -> Iterator[list[int]]:
    """Yield the offsets of up to ``size`` whole records at a time; ``span`` is a header's length.

    Each record's length says where the next one is, so this is a loop per packet.
    """
    captured = struct.Struct(order + "I").unpack_from
    data, end = memory.data, memory.size
    number, offset, damage = 0, _FILE_HEADER, None
    while offset < end and damage is None:
        found: list[int] = []
        while offset < end and len(found) < size:
            left = end - offset - span
            if left < 0:
                damage = f"is cut short (its header needs {span} octets, {end - offset} left)"
                break
            (length,) = captured(data, offset + 8)
            if length > limit:
                damage = f"is implausible: {length} octets, where {limit} are possible"
                break
            if length > left:
                damage = f"is cut short (needs {length} octets, {left} left)"
                break
            found.append(offset)
            offset += span + length
        number += len(found)
        progress.reach(offset)
        if found:
            yield found
    if damage is not None:
        progress.stop(offset, f"record {number + 1} at offset {offset} {damage}")


def _columns(memory: Octets, position: Column, header: np.dtype[Any], file_format: Format) -> Batch:
    record = octets.load(memory, position, header)
    length = record["captured"].astype(np.int64)
    seconds = record["seconds"].astype(np.int64)  # unsigned, so good until 2106
    direction = np.full(len(position), INBOUND, np.uint8)
    if file_format.modified:
        direction[record["packet_type"] == _PACKET_OUTGOING] = OUTBOUND
    return Batch(
        memory=memory,
        start=position + header.itemsize,
        length=length,
        wire_length=np.maximum(record["original"].astype(np.int64), length),
        timestamp=seconds * 1_000_000_000 + record["fraction"].astype(np.int64) * file_format.unit,
        direction=direction,
    )
