"""Read each frame's flow: what the sender needs to know of the packets it clones.

The hash is equal for both directions of a flow (both endpoints are hashed by themselves and their
sum is mixed), so that ECMP, RSS and a pool of analysers keep the halves of a connection together.
Fragments hash by their addresses alone, because only the first one has ports; frames without a whole
IP header by their MAC addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.wire import ethernet, ipv4, ipv6
from tunnelbridge.wire.layer import UNKNOWN, Codes, Kind, Layer
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

ADDRESSES6: Final = np.dtype([("source", ">u8", 2), ("destination", ">u8", 2)])
MACS: Final = np.dtype([("high", ">u8"), ("low", ">u4")])
PORTS: Final = np.dtype([("source", ">u2"), ("destination", ">u2")])
_HAS_PORTS: Final = np.isin(np.arange(256), (6, 17, 33, 132, 136))

Words = npt.NDArray[np.uint64]
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(slots=True)
class Flows:
    """What was read of n frames; columns of shape (n,)."""

    start: Column
    payload: Column
    """Offset of the packet behind the MAC header and its tags."""
    ethertype: Column
    tag: Column
    """TPID << 16 | TCI of the first tag in the data, 0 for none."""
    transport: Column
    """Offset behind the IP header, where ``kind`` starts."""
    end: Column
    """Where the IP packet ends."""
    kind: Codes
    """What follows the IP header (a :class:`~.layer.Kind`); NONE for no tunnel or no good IP."""
    fragment: Flags
    """An IP fragment, first or later; its ``kind`` is NONE."""
    entropy: Column
    """The symmetric hash, 16 bits."""


def read_flows(memory: Octets, start: Column, end: Column) -> Flows:
    """Read MAC, IP and port columns of frames that are at least 14 octets long."""
    inside = ethernet.ethertypes(memory, start, end)
    flows = Flows(
        start=start,
        payload=inside.payload,
        ethertype=inside.ethertype,
        tag=inside.tag,
        transport=inside.payload,
        end=end,
        kind=np.zeros(len(start), np.uint8),
        fragment=np.zeros(len(start), np.bool_),
        entropy=np.zeros(0, np.int64),
    )
    is4 = inside.ethertype == ethernet.IPV4
    if is4.all():  # the usual batch: nothing to choose
        mixed = _read_ipv4(memory, flows, slice(None))
    else:
        mixed = _mac_pairs(memory, start)
        for chosen, read in (
            (np.flatnonzero(is4), _read_ipv4),
            (np.flatnonzero(inside.ethertype == ethernet.IPV6), _read_ipv6),
        ):
            if chosen.size:
                if flows.transport is flows.payload:
                    flows.transport, flows.end = flows.payload.copy(), end.copy()
                mixed[chosen] = read(memory, flows, chosen)
    flows.entropy = (_mix(mixed) >> np.uint64(48)).astype(np.int64)
    return flows


def _read_ipv4(memory: Octets, flows: Flows, chosen: slice | Column) -> Words:
    """Fill the IP columns of ``chosen`` and return the sum of their endpoint hashes."""
    at, until = flows.payload[chosen], flows.end[chosen]
    header = load(memory, at, ipv4.HEADER)
    found = ipv4.decode(memory, at, until)
    ported = (found.reason == 0) & _HAS_PORTS[header["protocol"]]
    _keep(flows, chosen, found)
    mixed = _endpoints(
        memory,
        header["source"].astype(np.uint64),
        header["destination"].astype(np.uint64),
        found.payload,
        ported & (found.payload + 4 <= found.end),
    )
    return _or_macs(memory, flows.start[chosen], found, mixed)


def _read_ipv6(memory: Octets, flows: Flows, chosen: slice | Column) -> Words:
    at, until = flows.payload[chosen], flows.end[chosen]
    found = ipv6.decode(memory, at, until)
    addresses = load(memory, at + 8, ADDRESSES6)
    next_header = memory[np.minimum(at + 6, memory.size - 1)]
    ported = (found.reason == 0) & _HAS_PORTS[next_header]
    _keep(flows, chosen, found)
    mixed = _endpoints(
        memory,
        _fold6(addresses["source"]),
        _fold6(addresses["destination"]),
        found.payload,
        ported & (found.payload + 4 <= found.end),
    )
    return _or_macs(memory, flows.start[chosen], found, mixed)


def _keep(flows: Flows, chosen: slice | Column, found: Layer) -> None:
    good = found.reason == 0
    kind = found.kind if good.all() else np.where(good, found.kind, Kind.NONE).astype(np.uint8)
    if isinstance(chosen, slice):
        flows.transport, flows.end, flows.kind = found.payload, found.end, kind
    else:
        flows.transport[chosen], flows.end[chosen] = found.payload, found.end
        flows.kind[chosen] = kind
    if found.fragment is not None:
        flows.fragment[chosen] = found.fragment != UNKNOWN


def _fold6(address: npt.NDArray[np.uint64]) -> Words:
    high, low = address[:, 0].astype(np.uint64), address[:, 1].astype(np.uint64)
    return _mix(high) ^ low


def _endpoints(
    memory: Octets,
    source: Words,
    destination: Words,
    transport: Column,
    ported: Flags,
) -> Words:
    """Hash (address, port) of both ends by themselves and add them up: order does not matter."""
    ports = load(memory, transport, PORTS)
    shift = np.uint64(32)
    source_port = np.where(ported, ports["source"], 0).astype(np.uint64) << shift
    destination_port = np.where(ported, ports["destination"], 0).astype(np.uint64) << shift
    return _mix(source ^ source_port) + _mix(destination ^ destination_port)


def _or_macs(memory: Octets, start: Column, found: Layer, mixed: Words) -> Words:
    """Replace the hashes of frames whose IP header was refused, in place."""
    refused = np.flatnonzero((found.reason != 0) & (found.reason != Reason.IP_FRAGMENT))
    if refused.size:
        mixed[refused] = _mac_pairs(memory, start[refused])
    return mixed


def _mac_pairs(memory: Octets, start: Column) -> Words:
    """Hash the two MAC addresses of frames that carry no IP, symmetrically."""
    macs = load(memory, start, MACS)
    high, low = macs["high"].astype(np.uint64), macs["low"].astype(np.uint64)
    destination = high >> np.uint64(16)
    source = ((high & np.uint64(0xFFFF)) << np.uint64(32)) | low
    return _mix(destination) + _mix(source)


def _mix(value: Words) -> Words:
    """Return the finaliser of splitmix64: every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * _M1
    value = (value ^ (value >> np.uint64(27))) * _M2
    return value ^ (value >> np.uint64(31))
