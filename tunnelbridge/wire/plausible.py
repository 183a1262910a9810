"""Does this look like a frame or a packet? For the few formats that do not say what they carry.

A first nibble alone never tells: MAC addresses start with 0, 4 and 6 too. An IPv4 header proves
itself by its checksum; a frame by an EtherType that exists.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.wire import ethernet, ipv4, ipv6
from tunnelbridge.wire.octets import load, sum_words

LLC: Final = 3
"""Octets of the shortest LLC header (IEEE 802.2)."""
MAX_LENGTH: Final = 1500
_KNOWN_TYPES: Final = np.isin(
    np.arange(0x10000),
    (
        *(0x0800, 0x0806, 0x86DD, 0x8035, 0x809B, 0x80F3),
        *ethernet.TAG_TYPES,
        *(0x8847, 0x8848, 0x8863, 0x8864, 0x886D, 0x888E, 0x8892, 0x88CC, 0x88E5, 0x88E7),
        *(0x88F7, 0x8902, 0x8906, 0x8909, 0x8914, 0x8915, 0x894F, 0x9000),
    ),
)


def is_frame(memory: Octets, start: Column, end: Column) -> Flags:
    """Tell where a frame may start: 14 octets and an EtherType in use."""
    whole = start + ethernet.HEADER.itemsize <= end
    known: Flags = whole & _KNOWN_TYPES[load(memory, start, ethernet.HEADER)["type"]]
    return known


def is_llc_frame(memory: Octets, start: Column, end: Column) -> Flags:
    """Tell where a frame with a length instead of an EtherType may start, padding included.

    Addresses look like lengths too (octets 2 and 3 of QEMU's 52:54:00:12:34:56 behind a control
    word), so try this where nothing else fits.
    """
    payload = start + ethernet.HEADER.itemsize
    length = load(memory, start, ethernet.HEADER)["type"].astype(np.int64)
    fits: Flags = (payload + length <= end) & (end - payload - length <= ethernet.MAX_PADDING)
    return fits & (length >= LLC) & (length <= MAX_LENGTH)


def is_ipv4(memory: Octets, start: Column, end: Column) -> Flags:
    """Tell where an IPv4 header starts: version, lengths and a right checksum."""
    header = load(memory, start, ipv4.HEADER)
    octets = (header["version_ihl"] & 15).astype(np.int64) * 4
    fits: Flags = (header["version_ihl"] >> 4 == 4) & (octets >= 20) & (start + octets <= end)
    fits &= (header["total_length"] >= octets) | (header["total_length"] == 0)
    candidates = np.flatnonzero(fits)
    sums = sum_words(memory, start[candidates], octets[candidates])
    fits[candidates[sums != 0xFFFF]] = False
    return fits


def is_ipv6(memory: Octets, start: Column, end: Column) -> Flags:
    """Tell where an IPv6 packet starts: version, and a payload length that is there, or was cut."""
    header = load(memory, start, ipv6.HEADER)
    fits: Flags = (header["version_class_flow"] >> 28 == 6) & (start + ipv6.HEADER.itemsize <= end)
    length = header["payload_length"].astype(np.int64)
    present = end - start - ipv6.HEADER.itemsize
    fits &= np.abs(present - length) < 64
    return fits
