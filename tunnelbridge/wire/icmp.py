"""ICMP errors (RFC 792) and ICMPv6 errors (RFC 4443): what they quote.

     0                   1                   2                   3
    |     Type      |     Code      |          Checksum             |
    |                             unused                            |
    |      the offending packet's IP header and what follows it     |

Only the sender's loop guard looks in here: an error that quotes one of its tunnels answers a clone,
and cloning it would bring the next error.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Kind, Layer, layer, refuse
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [("type", "u1"), ("code", "u1"), ("checksum", ">u2"), ("unused", ">u4"), ("quoted", "u1")]
)
QUOTE: Final = 8

IS_ERROR: Final = np.isin(np.arange(256), (1, 2, 3, 4, 5, 11, 12))
"""Types that quote a packet: ICMP 3, 4, 5, 11, 12 and ICMPv6 1 to 4."""


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read ICMP headers; ``kind`` is the quoted packet's IP version, NONE where none is quoted."""
    found = layer(start, end)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.IP_SHORT)
    found.payload = start + QUOTE
    version = header["quoted"] >> 4
    quoted = np.where(version == 6, Kind.IPV6, np.where(version == 4, Kind.IPV4, Kind.NONE))
    found.kind = np.where(IS_ERROR[header["type"]], quoted, Kind.NONE).astype(np.uint8)
    return found
