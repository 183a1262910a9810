"""Tunnelled traffic is told apart by the flow inside: hashes of the innermost IP packets.

All the traffic between two tunnel ends is one flow from outside, and one analyser would get all of it.
The loop guard walks into tunnels anyway and says where the innermost IP header of each frame is; the
hash of that flow is the frame's. It is the one the same packet has outside a tunnel. Filters look at
the packet as it was seen, so ports and protocol stay those of the outer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.wire import ethernet, ipv4
from tunnelbridge.wire.flow import ADDRESSES6, MACS, Flows, Words, fold6, mix, read_packet_flows
from tunnelbridge.wire.layer import UNKNOWN, Codes
from tunnelbridge.wire.octets import load

_SEED: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class Innermost:
    """The innermost IP packets of frames that carry tunnels; columns of shape (k,)."""

    frame: Column
    """Which frame of the batch; each at most once."""
    start: Column
    end: Column
    kind: Codes
    """IPV4 or IPV6."""

    def select(self, chosen: Flags) -> Innermost:
        """Return the rows that are ``chosen``."""
        return Innermost(
            self.frame[chosen], self.start[chosen], self.end[chosen], self.kind[chosen]
        )


def follow_innermost(memory: Octets, flows: Flows, inner: Innermost) -> None:
    """Put the hashes of the flows inside tunnels into their frames' rows, in place.

    A later fragment inside a tunnel hashes by its addresses.
    """
    if not inner.frame.size:
        return
    found = read_packet_flows(memory, inner.start, inner.end, inner.kind)
    flows.hash[inner.frame] = found.hash
    flows.inner_source = np.zeros(len(flows.hash), np.uint64)
    flows.inner_source[inner.frame] = source_hash(memory, found)


def source_hash(memory: Octets, flows: Flows) -> Words:
    """Return a hash of each frame's source address alone: innermost IP, else MAC; never 0.

    Shape (n,). A pool by source address keeps what one host sends together, fragments included.
    """
    source = load(memory, flows.payload, ipv4.HEADER)["source"].astype(np.uint64)
    is_ip = flows.protocol != UNKNOWN
    is4 = flows.ethertype == ethernet.IPV4
    if not (is4 & is_ip).all():
        is6 = np.flatnonzero((flows.ethertype == ethernet.IPV6) & is_ip)
        source[is6] = fold6(load(memory, flows.payload[is6] + 8, ADDRESSES6)["source"])
        rest = np.flatnonzero(~is_ip)
        macs = load(memory, flows.start[rest], MACS)
        high, low = macs["high"].astype(np.uint64), macs["low"].astype(np.uint64)
        source[rest] = (high & np.uint64(0xFFFF)) << np.uint64(32) | low
    hashed = mix(source ^ _SEED) | np.uint64(1)
    if flows.inner_source is not None:
        hashed = np.where(flows.inner_source != 0, flows.inner_source, hashed)
    return hashed
