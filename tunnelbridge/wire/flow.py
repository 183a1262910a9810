"""Read each frame's flow: what the sender needs to know of the packets it clones.

The hash is equal for both directions of a flow (both endpoints are hashed by themselves and their
sum is mixed), so that ECMP, RSS and a pool of analysers keep the halves of a connection together.
A first fragment hashes like the rest of its flow; later ones have no ports and hash by their addresses
alone until :mod:`tunnelbridge.clone.fragments` has seen their first; frames without a whole IP header
hash by their MAC addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.wire import ethernet, ipv4, ipv6
from tunnelbridge.wire.ethernet import EtherTypes
from tunnelbridge.wire.layer import UNKNOWN, Codes, Kind, Layer
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

ADDRESSES6: Final = np.dtype([("source", ">u8", 2), ("destination", ">u8", 2)])
MACS: Final = np.dtype([("high", ">u8"), ("low", ">u4")])
PORTS: Final = np.dtype([("both", ">u4")])
_HAS_PORTS: Final = np.isin(np.arange(256), (6, 17, 33, 132, 136))

Words = npt.NDArray[np.uint64]
"""Shape (n,): hashes."""
_NO_WORDS: Final[Words] = np.zeros(0, np.uint64)
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
    protocol: Column
    """Of the upper layer, behind IPv6 extension headers; -1 without a good IP header."""
    ports: Column
    """Source << 16 | destination; -1 for later fragments, protocols without ports, where cut off."""
    hash: Words
    """The symmetric hash of addresses and ports, 64 bits."""
    identification: Column | None = None
    """Of fragments, -1 for whole packets; None in a batch without fragments."""
    first_fragment: Flags | None = None
    """The fragment with offset zero; None in a batch without fragments."""
    inner_source: Words | None = None
    """Hash of the source address inside a tunnel, 0 outside (:mod:`tunnelbridge.clone.innermost`);
    None in a batch without tunnels."""

    @property
    def entropy(self) -> Column:
        """The top 16 bits of the hash: what outer headers tell of a flow."""
        return (self.hash >> np.uint64(48)).astype(np.int64)

    def select(self, index: npt.NDArray[Any]) -> Flows:
        """Return the rows that ``index`` (positions or truth values) names, in its order."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name, column in columns.items():
            columns[name] = None if column is None else column[index]
        return Flows(**columns)


def read_flows(memory: Octets, start: Column, end: Column) -> Flows:
    """Read MAC, IP and port columns of frames that are at least 14 octets long."""
    return _read(memory, start, ethernet.ethertypes(memory, start, end), end)


def read_packet_flows(memory: Octets, start: Column, end: Column, kind: Codes) -> Flows:
    """Read IP and port columns of bare packets; ``kind`` says IPV4 or IPV6 of each."""
    ethertype = np.where(kind == Kind.IPV4, ethernet.IPV4, ethernet.IPV6)
    return _read(memory, start, EtherTypes(start, ethertype, np.zeros(len(start), np.int64)), end)


def _read(memory: Octets, start: Column, inside: EtherTypes, end: Column) -> Flows:
    """Read what is behind the MAC headers."""
    flows = Flows(
        start=start,
        payload=inside.payload,
        ethertype=inside.ethertype,
        tag=inside.tag,
        transport=inside.payload,
        end=end,
        kind=np.zeros(len(start), np.uint8),
        fragment=np.zeros(len(start), np.bool_),
        protocol=inside.ethertype,  # these three are replaced below
        ports=inside.ethertype,
        hash=_NO_WORDS,
    )
    is4 = inside.ethertype == ethernet.IPV4
    if is4.all():  # the usual batch: nothing to choose
        flows.hash = mix(_read_ipv4(memory, flows, slice(None)))
    else:
        flows.hash = mix(_read_each(memory, flows, is4))
    return flows


def _read_each(memory: Octets, flows: Flows, is4: Flags) -> Words:
    """Fill the IP columns of a batch that is not all IPv4; return the sums of endpoint hashes."""
    mixed = _mac_pairs(memory, flows.start)
    flows.transport, flows.end = flows.payload.copy(), flows.end.copy()
    flows.protocol = np.full(len(is4), UNKNOWN, np.int64)
    flows.ports = flows.protocol.copy()
    for chosen, read in (
        (np.flatnonzero(is4), _read_ipv4),
        (np.flatnonzero(flows.ethertype == ethernet.IPV6), _read_ipv6),
    ):
        if chosen.size:
            mixed[chosen] = read(memory, flows, chosen)
    return mixed


def _read_ipv4(memory: Octets, flows: Flows, chosen: slice | Column) -> Words:
    """Fill the IP columns of ``chosen`` and return the sum of their endpoint hashes."""
    at, until = flows.payload[chosen], flows.end[chosen]
    header = load(memory, at, ipv4.HEADER)
    found = ipv4.decode(memory, at, until)
    ports = _keep(memory, flows, chosen, found, header["protocol"])
    source, destination = header["source"], header["destination"]
    mixed = _endpoints(source.astype(np.uint64), destination.astype(np.uint64), ports)
    return _or_macs(memory, flows.start[chosen], found, mixed)


def _read_ipv6(memory: Octets, flows: Flows, chosen: slice | Column) -> Words:
    at, until = flows.payload[chosen], flows.end[chosen]
    found, next_header = ipv6.decode_with_protocol(memory, at, until)
    addresses = load(memory, at + 8, ADDRESSES6)
    ports = _keep(memory, flows, chosen, found, next_header)
    source, destination = addresses["source"], addresses["destination"]
    mixed = _endpoints(fold6(source), fold6(destination), ports)
    return _or_macs(memory, flows.start[chosen], found, mixed)


def _keep(
    memory: Octets, flows: Flows, chosen: slice | Column, found: Layer, number: Codes
) -> Column:
    """Put what was decoded into the columns; return the ports of ``chosen``.

    ``number`` is the upper layer's protocol as it stands in the header.
    """
    good = readable = found.reason == 0
    kind, protocol = found.kind, number.astype(np.int64)
    if not good.all():
        kind = np.where(good, kind, Kind.NONE).astype(np.uint8)
        protocol[~good & (found.reason != Reason.IP_FRAGMENT)] = UNKNOWN
        readable = good if found.first_fragment is None else good | found.first_fragment
    readable = readable & _HAS_PORTS[number] & (found.payload + PORTS.itemsize <= found.end)
    ports = load(memory, found.payload, PORTS)["both"].astype(np.int64)
    if not readable.all():
        ports[~readable] = UNKNOWN
    if isinstance(chosen, slice):
        flows.transport, flows.end, flows.kind = found.payload, found.end, kind
        flows.protocol, flows.ports = protocol, ports
    else:
        flows.transport[chosen], flows.end[chosen] = found.payload, found.end
        flows.kind[chosen] = kind
        flows.protocol[chosen], flows.ports[chosen] = protocol, ports
    _keep_fragments(flows, chosen, found)
    return ports


def _keep_fragments(flows: Flows, chosen: slice | Column, found: Layer) -> None:
    if found.fragment is None or found.first_fragment is None:
        return
    if flows.identification is None or flows.first_fragment is None:
        flows.identification = np.full(len(flows.start), UNKNOWN, np.int64)
        flows.first_fragment = np.zeros(len(flows.start), np.bool_)
    flows.identification[chosen] = found.fragment
    flows.first_fragment[chosen] = found.first_fragment
    flows.fragment[chosen] = found.fragment != UNKNOWN


def fold6(address: npt.NDArray[np.uint64]) -> Words:
    """Hash IPv6 addresses, as two words of shape (n, 2), to one word each."""
    high, low = address[:, 0].astype(np.uint64), address[:, 1].astype(np.uint64)
    return mix(high) ^ low


def _endpoints(source: Words, destination: Words, ports: Column) -> Words:
    """Hash (address, port) of both ends by themselves and add them up: order does not matter."""
    known = np.maximum(ports, 0).view(np.uint64)
    source_port = known >> np.uint64(16) << np.uint64(32)
    destination_port = known << np.uint64(48) >> np.uint64(16)
    return mix(source ^ source_port) + mix(destination ^ destination_port)


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
    return mix(destination) + mix(source)


def mix(value: Words) -> Words:
    """Return the finaliser of splitmix64: every input bit reaches every output bit.

    Sebastiano Vigna, splitmix64.c: shifts 30, 27, 31 and the two constants are his.
    """
    value = (value ^ (value >> np.uint64(30))) * _M1
    value = (value ^ (value >> np.uint64(27))) * _M2
    return value ^ (value >> np.uint64(31))
