"""Find the IP header right behind the MAC header, and the transport header behind that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Flags, Octets, zeros
from tunnelbridge.restore import heads
from tunnelbridge.wire import ethernet, ipv4, ipv6
from tunnelbridge.wire.layer import Layer
from tunnelbridge.wire.reasons import Reason

ICMP, TCP, UDP, DCCP, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 33, 58, 132, 136
ROOM: Final = 78
"""Octets from the IP header to the end of TCP's checksum, behind 40 octets of IPv4 options."""
_CHECKSUM: Final = {ICMP: 2, TCP: 16, UDP: 6, DCCP: 6, ICMPV6: 2, UDPLITE: 6}
"""Where the checksum lies in the transport header; SCTP has a CRC at octet 8 instead."""
CHECKSUM_AT: Final = np.array([_CHECKSUM.get(number, -1) for number in range(256)])
_SIZE: Final = np.array(
    [{ICMP: 6, ICMPV6: 6, SCTP: 12}.get(number, at + 2 if at > 0 else 0)
     for number, at in enumerate(CHECKSUM_AT.tolist())]
)  # fmt: skip
"""Octets of the transport header up to the end of the last field that may change."""
HAS_PORTS: Final = np.isin(np.arange(256), (TCP, UDP, DCCP, SCTP, UDPLITE))
HAS_PSEUDO_HEADER: Final = np.isin(np.arange(256), (TCP, UDP, DCCP, ICMPV6, UDPLITE))
IS_ECHO: Final = np.zeros((256, 256), np.bool_)  # protocol, type
IS_ECHO[ICMP, [0, 8]] = IS_ECHO[ICMPV6, [128, 129]] = True


@dataclass(slots=True)
class Internet:
    """Copies of the first octets of m packets, and where the headers are in them.

    Columns of shape (m,); positions count from the first of all ``octets``.
    """

    octets: Octets
    network: Column
    version: Column
    """4, 6, or 0 for a packet that stays as it is."""
    protocol: Column
    """Of the transport header, 0 where none is in reach: a later fragment, broken headers."""
    transport: Column
    present: Column
    """Where what is there of the packet ends."""
    end: Column
    """Where the packet ends by its own length."""
    limit: Column
    """No transport field is written beyond it: ``end``, or that of the copy."""
    fragment: Flags
    need: Column
    """Octets of the packet up to the end of the last field that may change."""


def find(octets: Octets, header_length: Column, total: Column, ethertype: Column) -> Internet:
    """Find the IP and transport headers in the copies."""
    count, width = octets.shape
    flat = octets.reshape(-1)
    begin = np.arange(count) * width
    network = begin + header_length
    present = begin + np.minimum(total, width)
    first = heads.read(flat, network, "u1") >> 4
    headers = Internet(
        octets=flat,
        network=network,
        version=zeros(count),
        protocol=zeros(count),
        transport=network.copy(),
        present=present,
        end=present.copy(),
        limit=begin + width,
        fragment=np.zeros(count, np.bool_),
        need=zeros(count),
    )
    for version, kind in ((4, ethernet.IPV4), (6, ethernet.IPV6)):
        chosen = np.flatnonzero((ethertype == kind) & (first == version) & (network < present))
        if not chosen.size:
            continue
        headers.version[chosen] = version
        at, until = network[chosen], present[chosen]
        if version == 4:
            fixed = ipv4.HEADER.itemsize
            found = ipv4.decode(flat, at, until)
            protocol = heads.read(flat, at + 9, "u1")
        else:
            fixed = ipv6.HEADER.itemsize
            found, last = ipv6.decode_with_protocol(flat, at, until)
            protocol = last.astype(np.int64)
        headers.need[chosen] = header_length[chosen] + fixed
        _note(headers, chosen, begin, found, protocol)
    headers.limit = np.minimum(headers.limit, headers.end)
    return headers


def _note(headers: Internet, chosen: Column, begin: Column, found: Layer, protocol: Column) -> None:
    """Note where the transport headers of ``chosen`` are, and which have none in reach."""
    assert found.claimed_end is not None
    readable = found.reason == 0
    walked = found.payload + np.where(readable, 0, ipv6.EXTENSION.itemsize)
    if found.first_fragment is not None:
        fragment = found.reason == Reason.IP_FRAGMENT
        headers.fragment[chosen] = fragment
        readable = readable | (fragment & found.first_fragment)
    protocol = np.where(readable, protocol, 0)
    headers.protocol[chosen] = protocol
    headers.transport[chosen] = found.payload
    headers.end[chosen] = found.claimed_end
    need = np.where(readable, found.payload + _SIZE[protocol], walked) - begin[chosen]
    headers.need[chosen] = np.maximum(headers.need[chosen], need)
