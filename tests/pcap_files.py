"""Capture files by obvious scalar code: written as the format says, read by it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

NANOSECOND = 0xA1B23C4D


def write(
    path: Path,
    packets: Sequence[bytes | tuple[int, bytes]],
    linktype: int = 1,
    tail: bytes = b"",
    longer: int = 0,
) -> Path:
    """Write packets, or (nanoseconds, packet); each was ``longer`` octets longer on the wire."""
    octets = struct.pack("<IHHIIII", NANOSECOND, 2, 4, 0, 0, 262144, linktype)
    for each in packets:
        time, packet = each if isinstance(each, tuple) else (0, each)
        size = len(packet)
        octets += struct.pack("<IIII", time // 10**9, time % 10**9, size, size + longer) + packet
    path.write_bytes(octets + tail)
    return path


def parse(octets: bytes) -> list[tuple[int, bytes, int]]:
    """Return (nanoseconds, packet, original length) of a file as our programs write it."""
    assert struct.unpack_from("=I", octets)[0] == NANOSECOND
    found, at = [], 24
    while at < len(octets):
        seconds, nanoseconds, size, original = struct.unpack_from("=IIII", octets, at)
        packet = octets[at + 16 : at + 16 + size]
        assert len(packet) == size
        found.append((seconds * 10**9 + nanoseconds, packet, original))
        at += 16 + size
    return found
