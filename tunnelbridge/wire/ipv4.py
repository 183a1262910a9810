"""IPv4 (RFC 791 §3.1).

     0                   1                   2                   3
    |Version|  IHL  |Type of Service|          Total Length         |
    |         Identification        |Flags|      Fragment Offset    |
    |  Time to Live |    Protocol   |         Header Checksum       |
    |                       Source Address                          |
    |                    Destination Address                        |
    |                    Options                    |    Padding    |

Receiver: the header is IHL words long (at least 5); the packet ends at Total Length, because
Ethernet pads. A Total Length beyond what is present marks a packet that was cut on its way; one of
zero a super-packet that was never on a wire (Linux BIG TCP and TSO). A fragment must be reassembled
before anything behind the header can be read (RFC 6864).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import UNKNOWN, Kind, Layer, layer, refuse, table
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [
        ("version_ihl", "u1"),
        ("tos", "u1"),
        ("total_length", ">u2"),
        ("identification", ">u2"),
        ("fragment", ">u2"),
        ("ttl", "u1"),
        ("protocol", "u1"),
        ("checksum", ">u2"),
        ("source", ">u4"),
        ("destination", ">u4"),
    ]
)

FRAGMENT_BITS: Final = 0x3FFF
"""More Fragments and the offset: non-zero in every fragment."""
MORE_FRAGMENTS: Final = 0x2000

PROTOCOLS: Final = table(
    256,
    {
        1: Kind.ICMP,
        4: Kind.IPV4,
        17: Kind.UDP,
        41: Kind.IPV6,
        47: Kind.GRE,
        58: Kind.ICMP,
        97: Kind.ETHERIP,
        137: Kind.MPLS,
        143: Kind.ETHERNET,
    },
)
"""IP protocol number to what we can take off behind it; IPv6 next headers use the same numbers."""


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read IPv4 headers; ``kind`` by protocol, ``end`` cut to Total Length."""
    found = layer(start, end)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.IP_SHORT)
    version_ihl = header["version_ihl"]
    refuse(found, version_ihl >> 4 != 4, Reason.IP_VERSION)
    header_length = (version_ihl & 15).astype(np.int64) * 4
    total_length = header["total_length"].astype(np.int64)
    total_length = np.where(total_length == 0, end - start, total_length)
    found.payload = start + header_length
    found.claimed_end = np.where(found.reason == 0, start + total_length, end)
    found.end = np.minimum(end, found.claimed_end)
    refuse(found, (header_length < HEADER.itemsize) | (found.payload > found.end), Reason.IP_SHORT)
    fragments = header["fragment"] & FRAGMENT_BITS
    if fragments.any():
        refuse(found, fragments != 0, Reason.IP_FRAGMENT)
        is_fragment = found.reason == Reason.IP_FRAGMENT
        identification = header["identification"].astype(np.int64)
        found.fragment = np.where(is_fragment, identification, UNKNOWN)
        found.first_fragment = is_fragment & (fragments == MORE_FRAGMENTS)
    found.kind = PROTOCOLS[header["protocol"]]
    return found
