"""Received datagrams without their outer IP headers: what is passed on unchanged.

How much of a datagram a socket hands over depends on the socket (:mod:`tunnelbridge.linux.receive`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from collector.delivery import Delivery
from tunnelbridge.batch import Batch, Column
from tunnelbridge.wire import ipv4, udp
from tunnelbridge.wire.encapsulation import GRE_PROTOCOL, UDP_PROTOCOL
from tunnelbridge.wire.layer import Kind
from tunnelbridge.wire.octets import load

_PROTOCOLS: Final = {
    Kind.UDP: UDP_PROTOCOL,
    Kind.GRE: GRE_PROTOCOL,
    Kind.ETHERIP: 97,
    Kind.MPLS: 137,
}
"""IP protocols of what raw IPv6 sockets hand over, by the first header."""
_NOBODY: Final = udp.port_table({})


@dataclass(slots=True)
class Carried:
    """What the outer IP headers of m datagrams carried; columns of shape (m,)."""

    payload: Batch
    """Behind the UDP header; of other protocols behind the IP header."""
    protocol: Column
    source: Column
    """UDP ports; they mean nothing for other protocols."""
    destination: Column

    def select(self, index: Column) -> Carried:
        """Return the datagrams at ``index``."""
        return Carried(
            self.payload.select(index),
            self.protocol[index],
            self.source[index],
            self.destination[index],
        )

    def udp_headers(
        self, destination: int | None
    ) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        """Return UDP headers, uint8 (m, 8), to a port or to those the datagrams came to.

        The source port stays, because it tells flows apart (RFC 7348 §5). The checksum is 0: IPv4
        allows it for tunnels, and for IPv6 the kernel calculates one.
        """
        rows = np.zeros(len(self.protocol), udp.HEADER)
        rows["source"] = self.source
        rows["destination"] = self.destination if destination is None else destination
        rows["length"] = self.payload.length + udp.HEADER.itemsize
        return rows.view(np.uint8).reshape(len(rows), udp.HEADER.itemsize)


def read_carried(delivery: Delivery, entropy: Column) -> Carried | None:
    """Return what the datagrams of ``delivery`` carried; None where it does not know them any more.

    ``entropy`` (m,), 16 bits, makes source ports for datagrams that came without.
    """
    if delivery.outer is None or delivery.index is None:
        return None
    outer = delivery.outer.select(delivery.index)
    memory, start, end = outer.memory, outer.start, outer.start + outer.length
    if delivery.port:
        source = udp.FIRST_SOURCE_PORT + entropy % udp.SOURCE_PORTS
        return Carried(outer, _all(UDP_PROTOCOL, outer), source, _all(delivery.port, outer))
    if delivery.first == Kind.IPV4:
        protocol = load(memory, start, ipv4.HEADER)["protocol"].astype(np.int64)
        packet = ipv4.decode(memory, start, end)
        start, end = packet.payload, packet.end
    else:
        protocol = _all(_PROTOCOLS[delivery.first], outer)
    header = load(memory, start, udp.HEADER)
    datagram = udp.decode(memory, start, end, _NOBODY)
    is_udp = protocol == UDP_PROTOCOL
    start = np.where(is_udp, datagram.payload, start)
    length = np.where(is_udp, datagram.end, end) - start
    return Carried(
        replace(outer, start=start, length=length, wire_length=length),
        protocol,
        header["source"].astype(np.int64),
        header["destination"].astype(np.int64),
    )


def _all(value: int, outer: Batch) -> Column:
    return np.full(len(outer), value, np.int64)
