"""Build pcapng's blocks: section, interfaces and statistics one by one, packets as columns.

An enhanced packet block is a header row, the packet where it is, and a tail row: padding, options and
the length again. The tail's options stand in a fixed order with what is rare first, so that a tail
without it is the end of the same row.

Format: draft-ietf-opsawg-pcapng, sections 4.1 (section), 4.2 (interface), 4.3 (enhanced packet), 4.6
(statistics), in this machine's byte order. Times are in nanoseconds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from tunnelbridge.batch import OUTBOUND, Batch, Column, Flags
from tunnelbridge.records import Records, packets, rows

LINKTYPE_ETHERNET: Final = 1
SNAPLEN: Final = 262144
"""The longest packet that libpcap and Wireshark accept (MAXIMUM_SNAPLEN)."""

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_STATISTICS: Final = 5
_ENHANCED: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_UNKNOWN_LENGTH: Final = -1
_NANOSECONDS: Final = 9

_COMMENT: Final = 1
_HARDWARE, _OS, _APPLICATION = 2, 3, 4
_NAME, _DESCRIPTION, _TSRESOL, _FILTER = 2, 3, 9, 11
_START, _END, _RECEIVED, _IF_DROP, _OS_DROP, _DELIVERED = 2, 3, 4, 5, 7, 8
_FLAGS: Final = 2
_DROPCOUNT: Final = 4
_INBOUND_FLAG, _OUTBOUND_FLAG = 1, 2
_STRING_FILTER: Final = b"\0"
_LONGEST_TEXT: Final = 4096

TRUNCATED: Final = b"cut before it was received"

_HEADER: Final = np.dtype(
    [
        ("kind", "=u4"),
        ("total", "=u4"),
        ("interface", "=u4"),
        ("high", "=u4"),
        ("low", "=u4"),
        ("captured", "=u4"),
        ("original", "=u4"),
    ]
)
_TAIL: Final = np.dtype(
    [
        ("pad", "V4"),
        ("comment_code", "=u2"),
        ("comment_length", "=u2"),
        ("comment", f"S{-(-len(TRUNCATED) // 4) * 4}"),
        ("drop_code", "=u2"),
        ("drop_length", "=u2"),
        ("drops", "V8"),
        ("flags_code", "=u2"),
        ("flags_length", "=u2"),
        ("flags", "=u4"),
        ("end", "=u4"),
        ("total", "=u4"),
    ]
)
_WITH_COMMENT: Final = 4
"""Where the options of a tail begin, the padding before them not counted."""
_WITH_DROPS: Final = 8 + _TAIL["comment"].itemsize
_WITH_FLAGS: Final = _WITH_DROPS + 12


@dataclass(frozen=True, slots=True)
class Statistics:
    """What became of one interface's packets between ``start`` and ``end`` (ns since the epoch)."""

    start: int
    end: int
    received: int
    """Packets that reached the program."""
    lost: int
    """Packets that did not, as their sequence numbers tell."""
    dropped: int
    """Packets that reached the program and not the file."""


def section(application: str, host: str = "", system: str = "", hardware: str = "") -> bytes:
    """Return a section header block; a file begins with one. ``host`` becomes its comment."""
    options = _text(_COMMENT, host and f"host {host}")
    options += _text(_HARDWARE, hardware) + _text(_OS, system) + _text(_APPLICATION, application)
    fixed = struct.pack("=IHHq", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION, fixed + _closed(options))


def interface(
    name: str, description: str = "", expression: str = "", snaplen: int = SNAPLEN
) -> bytes:
    """Return an Ethernet interface description block; the first in a section is number 0.

    ``expression`` is the tcpdump filter that packets have passed.
    """
    options = _text(_NAME, name) + _text(_DESCRIPTION, description)
    if expression:
        options += _option(_FILTER, _STRING_FILTER + _octets(expression))
    options += _option(_TSRESOL, bytes([_NANOSECONDS]))
    return _block(_INTERFACE, struct.pack("=HHI", LINKTYPE_ETHERNET, 0, snaplen) + _closed(options))


def statistics(number: int, told: Statistics) -> bytes:
    """Return the interface statistics block of interface ``number``."""
    times = [(_START, told.start), (_END, told.end)]
    counts = [
        (_RECEIVED, told.received),
        (_IF_DROP, told.lost),
        (_OS_DROP, told.dropped),
        (_DELIVERED, told.received - told.dropped),
    ]
    options = b"".join(_option(code, _time(value)) for code, value in times)
    options += b"".join(_option(code, struct.pack("=Q", value)) for code, value in counts)
    return _block(_STATISTICS, struct.pack("=I", number) + _time(told.end) + _closed(options))


def packet_records(batch: Batch, number: Column, gap: Column, truncated: Flags) -> Records:
    """Return packets as enhanced packet blocks.

    Args:
        batch: n packets; their direction, time, and original length are told.
        number: (n,) the interface of each.
        gap: (n,) packets known to be missing right before each on its interface.
        truncated: (n,) packets that had been cut before they were received.

    """
    captured = batch.total_length
    padding = -captured % 4
    begin = np.where(gap > 0, _WITH_DROPS, _WITH_FLAGS)
    begin[truncated] = _WITH_COMMENT
    tails = _tails(batch, gap, truncated)
    tail = rows(tails, begin - padding)
    size = _HEADER.itemsize + captured + tail.length
    headers = np.empty(len(batch), _HEADER)
    headers["kind"] = _ENHANCED
    headers["total"] = tails["total"] = size
    headers["interface"] = number
    headers["high"], headers["low"] = batch.timestamp >> 32, batch.timestamp & 0xFFFFFFFF
    headers["captured"] = captured
    headers["original"] = np.maximum(batch.wire_length, captured)
    return Records([rows(headers), *packets(batch), tail], size)


def _tails(
    batch: Batch, gap: Column, truncated: Flags
) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Return the tails, all but their lengths; what lies before a tail's options is zero."""
    tails = np.zeros(len(batch), _TAIL)
    if truncated.any():
        commented = np.zeros(1, _TAIL)
        commented["comment_code"], commented["comment_length"] = _COMMENT, len(TRUNCATED)
        commented["comment"] = TRUNCATED
        tails[truncated] = commented
    told = np.flatnonzero(truncated | (gap > 0))
    if told.size:
        tails["drop_code"][told], tails["drop_length"][told] = _DROPCOUNT, 8
        tails["drops"][told] = gap[told].astype(np.uint64).view("V8")
    tails["flags_code"], tails["flags_length"] = _FLAGS, 4
    tails["flags"] = np.where(batch.direction == OUTBOUND, _OUTBOUND_FLAG, _INBOUND_FLAG)
    return tails


def _block(kind: int, body: bytes) -> bytes:
    total = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + total + body + total


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: int, text: str) -> bytes:
    return _option(code, _octets(text)) if text else b""


def _octets(text: str) -> bytes:
    return text.encode(errors="replace")[:_LONGEST_TEXT].decode(errors="ignore").encode()


def _closed(options: bytes) -> bytes:
    return options + bytes(4)


def _time(value: int) -> bytes:
    """Return a time as pcapng's blocks have it: its high word first, whatever the byte order."""
    return struct.pack("=II", value >> 32 & 0xFFFFFFFF, value & 0xFFFFFFFF)
