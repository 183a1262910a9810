"""Decode header after header of a batch, inwards, up to four tunnels deep.

``walk`` yields one :class:`Step` per header kind and round; who consumes it keeps what it needs: the
collector the innermost payload, the sender's loop guard every tunnel on the way. Packets of one batch
may take different ways; those with the same kind of header next are decoded together, so a uniform
batch costs one ``decode`` per header whatever its size.

A tunnel ends where its payload is a frame or a bare IP packet; behind ``levels`` tunnels only that
payload's own MAC and IP headers are still read (for its length), no further tunnel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire import (
    erspan2,
    erspan3,
    etherip,
    ethernet,
    geneve,
    gre,
    icmp,
    ipv4,
    ipv6,
    juniper,
    mpls,
    nsh,
    ppp,
    tzsp,
    udp,
    vxlan,
    vxlan_gpe,
)
from tunnelbridge.wire.layer import PAYLOADS, Codes, Kind, Layer, layer
from tunnelbridge.wire.reasons import Reason

LEVELS: Final = 4
MAX_HEADERS: Final = 8 * LEVELS

Decoder = Callable[[Octets, Column, Column], Layer]

_DECODERS: Final[dict[int, Decoder]] = {
    Kind.ETHERNET: ethernet.decode,
    Kind.IPV4: ipv4.decode,
    Kind.IPV6: ipv6.decode,
    Kind.GRE: gre.decode,
    Kind.ERSPAN2: erspan2.decode,
    Kind.ERSPAN3: erspan3.decode,
    Kind.VXLAN: vxlan.decode,
    Kind.VXLAN_GPE: vxlan_gpe.decode,
    Kind.GENEVE: geneve.decode,
    Kind.TZSP: tzsp.decode,
    Kind.JUNIPER: juniper.decode,
    Kind.MPLS: mpls.decode,
    Kind.ETHERIP: etherip.decode,
    Kind.NSH: nsh.decode,
    Kind.PPP: ppp.decode,
    Kind.ICMP: icmp.decode,
}
_PAYLOAD: Final = np.isin(np.arange(256), PAYLOADS)
_FOLLOWED: Final = np.isin(np.arange(256), [*_DECODERS.keys() - {Kind.ICMP}, Kind.UDP])


@dataclass(slots=True)
class Step:
    """One header, decoded for the k packets that have it at this point."""

    index: Column | slice
    """Which packets of the batch; ``slice(None)`` while the whole batch goes one way."""
    kind: int
    start: Column
    """Where the header starts, shape (k,)."""
    layer: Layer


@dataclass(slots=True)
class _Group:
    """Packets of which the next header is to be decoded, columns of shape (k,)."""

    index: Column | None
    start: Column
    end: Column
    kind: Codes
    depth: Column

    def select(self, chosen: Column) -> _Group:
        return _Group(
            chosen if self.index is None else self.index[chosen],
            self.start[chosen],
            self.end[chosen],
            self.kind[chosen],
            self.depth[chosen],
        )


def walk(
    memory: Octets,
    start: Column,
    end: Column,
    first: int,
    ports: Codes,
    levels: int = LEVELS,
    searching: bool = False,
) -> Iterator[Step]:
    """Yield every header of every packet from the outside in; the first is of kind ``first``.

    ``ports`` (65536,) tells what listens on a UDP port. A header that is refused ends its packet.
    ``searching`` looks into what nobody would deliver as well: first fragments, and the packets that
    ICMP errors quote.
    """
    count = len(start)
    kinds = np.full(count, first, np.uint8)
    groups = [_Group(None, start, end, kinds, np.zeros(count, np.int64))] if count else []
    for _ in range(MAX_HEADERS):
        following: list[_Group] = []
        for group in groups:
            current = int(group.kind[0])
            found = _decode(memory, group.start, group.end, current, ports)
            if current != Kind.ETHERNET and (group.depth >= levels).any():
                found.kind[group.depth >= levels] = Kind.NONE  # what it carries stays whole
            index = slice(None) if group.index is None else group.index
            yield Step(index, current, group.start, found)
            following += _go_on(group, found, current, searching)
        groups = following
        if not groups:
            return


def _go_on(group: _Group, found: Layer, current: int, searching: bool) -> list[_Group]:
    """Return what is to be decoded next of ``group``, one group per kind of header."""
    depth = group.depth
    if current != Kind.ETHERNET:  # an Ethernet header is never what ends a tunnel
        depth = depth + _PAYLOAD[found.kind]
    good = found.reason == 0
    if searching and found.first_fragment is not None:
        good |= found.first_fragment & (found.reason == Reason.IP_FRAGMENT)
    go_on = good & (_FOLLOWED[found.kind] | (searching & (found.kind == Kind.ICMP)))
    rest = _Group(group.index, found.payload, found.end, found.kind, depth)
    if not go_on.any():
        return []
    if go_on.all() and (rest.kind == rest.kind[0]).all():
        return [rest]
    present = np.flatnonzero(np.bincount(rest.kind[go_on]))
    return [rest.select(np.flatnonzero(go_on & (rest.kind == kind))) for kind in present]


def _decode(memory: Octets, start: Column, end: Column, kind: int, ports: Codes) -> Layer:
    if kind == Kind.UDP:
        return udp.decode(memory, start, end, ports)
    decoder = _DECODERS.get(kind)
    return layer(start, end) if decoder is None else decoder(memory, start, end)
