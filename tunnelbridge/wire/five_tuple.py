"""The fields that filter rules look at: family, protocol, addresses and ports, as columns.

They are those of the packet right behind the MAC header and its tags, not of one inside a tunnel.
Addresses can be read of every packet whose fixed IP header is whole; protocol and ports are -1 where
the rest of the header is not good, so that a rule without them still matches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Octets, zeros
from tunnelbridge.wire import ethernet, ipv4
from tunnelbridge.wire.flow import ADDRESSES6, Flows
from tunnelbridge.wire.layer import UNKNOWN
from tunnelbridge.wire.octets import load

Words = npt.NDArray[np.uint64]

_FIXED6 = 40
"""Octets of an IPv6 header without extensions (RFC 8200 §3)."""


@dataclass(slots=True)
class FiveTuples:
    """Columns of shape (n,); IPv4 addresses are in the low words, the high ones are 0 then."""

    family: Column
    """4, 6, or 0 for a frame without an IP header that can be read."""
    protocol: Column
    """The upper-layer protocol, behind IPv6 extension headers; -1 unknown."""
    source_high: Words
    source_low: Words
    destination_high: Words
    destination_low: Words
    source_port: Column
    """-1 where ports are unknown: no such protocol, cut off, or a fragment without its first."""
    destination_port: Column

    def __len__(self) -> int:
        return len(self.family)


def read_five_tuples(memory: Octets, flows: Flows) -> FiveTuples:
    """Read the addresses of frames whose ``flows`` are known; no packet is refused."""
    count = len(flows.start)
    is4 = flows.ethertype == ethernet.IPV4
    if is4.all():  # the usual batch: nothing to choose
        tuples = _empty(flows, np.empty(count, np.uint64), np.empty(count, np.uint64))
        _read_ipv4(memory, flows, tuples, slice(None))
        return tuples
    tuples = _empty(flows, np.zeros(count, np.uint64), np.zeros(count, np.uint64))
    chosen = np.flatnonzero(is4)
    if chosen.size:
        _read_ipv4(memory, flows, tuples, chosen)
    chosen = np.flatnonzero(flows.ethertype == ethernet.IPV6)
    if chosen.size:
        tuples.source_high = np.zeros(count, np.uint64)
        tuples.destination_high = np.zeros(count, np.uint64)
        _read_ipv6(memory, flows, tuples, chosen)
    return tuples


def _empty(flows: Flows, source: Words, destination: Words) -> FiveTuples:
    """Return five-tuples with protocol and ports; the high words are shared zeros."""
    no_high = np.zeros(len(flows.start), np.uint64)
    known = flows.ports >= 0
    source_port, destination_port = flows.ports >> 16, flows.ports & 0xFFFF
    if not known.all():
        destination_port[~known] = UNKNOWN  # a shift keeps the sign, a mask does not
    return FiveTuples(
        family=zeros(len(flows.start)),
        protocol=flows.protocol,
        source_high=no_high,
        source_low=source,
        destination_high=no_high,
        destination_low=destination,
        source_port=source_port,
        destination_port=destination_port,
    )


def _read_ipv4(memory: Octets, flows: Flows, tuples: FiveTuples, chosen: slice | Column) -> None:
    at = flows.payload[chosen]
    header = load(memory, at, ipv4.HEADER)
    readable = (header["version_ihl"] >> 4 == 4) & (at + ipv4.HEADER.itemsize <= flows.end[chosen])
    tuples.family[chosen] = readable * 4
    tuples.source_low[chosen] = header["source"]
    tuples.destination_low[chosen] = header["destination"]


def _read_ipv6(memory: Octets, flows: Flows, tuples: FiveTuples, chosen: Column) -> None:
    at = flows.payload[chosen]
    addresses = load(memory, at + 8, ADDRESSES6)
    version = memory[np.minimum(at, memory.size - 1)] >> 4
    tuples.family[chosen] = ((version == 6) & (at + _FIXED6 <= flows.end[chosen])) * 6
    source, destination = addresses["source"], addresses["destination"]
    tuples.source_high[chosen], tuples.source_low[chosen] = source[:, 0], source[:, 1]
    tuples.destination_high[chosen] = destination[:, 0]
    tuples.destination_low[chosen] = destination[:, 1]
