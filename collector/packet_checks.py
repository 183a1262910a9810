"""Checksums of mirrored packets, for the health report.

A bad one is no reason to drop a frame: mirrors of hosts with offloads show them, and so do broken
NICs. But an IDS ignores such packets, so their share is worth knowing.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.wire import ethernet, ipv4, ipv6, udp
from tunnelbridge.wire.flow import Flows
from tunnelbridge.wire.octets import fold, load, sum_words

TCP: Final = 6
UDP: Final = 17
_GOOD: Final = 0xFFFF


def ip_end(memory: Octets, flows: Flows) -> Column:
    """Return where each IP packet ends by its own length, present or not; ``flows`` have good IP."""
    is4 = flows.ethertype == ethernet.IPV4
    header4, header6 = (load(memory, flows.payload, each.HEADER) for each in (ipv4, ipv6))
    length = np.where(
        is4,
        header4["total_length"].astype(np.int64),
        header6["payload_length"].astype(np.int64) + ipv6.HEADER.itemsize,
    )
    unsaid = (length == 0) | (~is4 & (header6["payload_length"] == 0))
    return np.where(unsaid, flows.end, flows.payload + length)


def bad_checksums(memory: Octets, flows: Flows, end: Column, truncated: Flags) -> tuple[int, int]:
    """Return how many IP packets could be checked, and how many of them have a bad checksum.

    Checked are packets that are whole: IPv4 headers, and TCP and UDP unless fragmented.
    """
    good = np.flatnonzero((flows.protocol >= 0) & ~truncated)
    rows = good[ip_end(memory, flows.select(good)) <= end[good]]
    if not rows.size:
        return 0, 0
    flows = flows.select(rows)
    is4 = flows.ethertype == ethernet.IPV4
    bad = np.zeros(len(rows), np.bool_)
    four = np.flatnonzero(is4)
    if four.size:
        start = flows.payload[four]
        length = (memory[start] & 15).astype(np.int64) * 4
        bad[four] = sum_words(memory, start, length) != _GOOD
    has_sum = ((flows.protocol == TCP) | (flows.protocol == UDP)) & ~flows.fragment
    field = load(memory, flows.transport, udp.HEADER)["checksum"]
    has_sum &= ~(is4 & (flows.protocol == UDP) & (field == 0))  # none was computed (RFC 768)
    chosen = np.flatnonzero(has_sum)
    if chosen.size:
        bad[chosen] |= _transport_sums(memory, flows.select(chosen), is4[chosen]) != _GOOD
    return len(rows), int(np.count_nonzero(bad))


def _transport_sums(memory: Octets, flows: Flows, is4: Flags) -> Column:
    """Sum pseudo-header and segment (RFC 9293 §3.1, RFC 8200 §8.1): 0xffff if they are good."""
    length = flows.end - flows.transport
    addresses = flows.payload + np.where(is4, 12, 8)
    total = sum_words(memory, flows.transport, length).astype(np.int64)
    total += sum_words(memory, addresses, np.where(is4, 8, 32))
    total += flows.protocol + (length >> 16) + (length & 0xFFFF)
    return fold(total).astype(np.int64)
