"""For tests of forwarding: received datagrams as the collector delivers them, sockets that record."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Self

import numpy as np
import outer
import recording

from collector.decap import decapsulate
from collector.delivery import Delivery
from tunnelbridge.batch import from_packets, zeros
from tunnelbridge.wire import udp
from tunnelbridge.wire.layer import Kind

SOURCE, HERE = "192.0.2.9", "192.0.2.2"
PORTS = udp.port_table(udp.PORTS)


class Recording(recording.RecordingSocket):
    """A tunnel socket that keeps what it is given and knows how much may wait."""

    octets = 0

    def never_wait(self, octets: int) -> Self:
        self.octets = octets
        return self


def deliver(
    packets: Sequence[bytes],
    first: Kind = Kind.IPV4,
    port: int = 0,
    direction: int | None = None,
    levels: int = 4,
) -> Delivery:
    """Take the tunnels off datagrams as a socket hands them over."""
    received = from_packets(list(packets), timestamp=1_700_000_000_123_456_789)
    found = decapsulate(received, first, PORTS, levels)
    count = len(found.batch)
    if direction is not None:
        found.batch.direction[:] = direction
    return Delivery(
        found.batch,
        zeros(count),
        zeros(count),
        found.truncated,
        None,
        received,
        found.index,
        first,
        port,
    )


# --- frames ---


def flow(number: int, size: int = 20) -> tuple[bytes, bytes]:
    """Return one packet in each direction of a TCP connection."""
    client, server = f"10.0.{number >> 8 & 255}.{number & 255}", "10.1.0.1"
    there = outer.tcp(bytes(size), 40000 + number % 1000, 443, number)
    back = outer.tcp(bytes(size), 443, 40000 + number % 1000, number)
    return (
        outer.frame(outer.ipv4(there, 6, client, server)),
        outer.frame(outer.ipv4(back, 6, server, client)),
    )


def flow6(number: int) -> tuple[bytes, bytes]:
    """Return the same over IPv6."""
    client, server = f"2001:db8::{number + 1:x}", "2001:db8:1::1"
    return (
        outer.frame(outer.ipv6(outer.udp(b"six", 5000, 53), 17, client, server)),
        outer.frame(outer.ipv6(outer.udp(b"six", 53, 5000), 17, server, client)),
    )


# --- tunnels by scalar code ---


def vxlan(inner: bytes, source_port: int = 55555, vni: int = 5) -> bytes:
    """Return VXLAN in IPv4."""
    header = struct.pack(">II", 0x0800_0000, vni << 8)
    return outer.ipv4(outer.udp(header + inner, source_port, 4789), 17, SOURCE, HERE)


def gre(protocol: int, inner: bytes, sequence: int | None = None) -> bytes:
    """Return GRE in IPv4."""
    return outer.ipv4(gre_payload(protocol, inner, sequence), 47, SOURCE, HERE)


def gre_payload(protocol: int, inner: bytes, sequence: int | None = None) -> bytes:
    """Return GRE and what is in it."""
    if sequence is None:
        return struct.pack(">HH", 0, protocol) + inner
    return struct.pack(">HHI", 0x1000, protocol, sequence) + inner


def erspan3(inner: bytes, *, egress: bool = False, cut: bool = False, session: int = 9) -> bytes:
    """Return ERSPAN type III in IPv4 (draft-foschiano-erspan-03 §4.3)."""
    header = struct.pack(">HHIHH", 0x2000, session | cut << 10, 1, 0, 0x8000 | egress << 3)
    return gre(0x22EB, header + inner, 1)


def untagged_erspan2(inner: bytes, tag: int) -> bytes:
    """Return ERSPAN type II whose source took the frame's tag (a TCI) out, En 2."""
    header = struct.pack(">HHI", 0x1000 | tag & 0xFFF, tag & 0xE000 | 2 << 11 | 7, 0)
    return gre(0x88BE, header + inner, 1)


def tzsp(inner: bytes, original: int) -> bytes:
    """Return TZSP in IPv4 that tells the original length (tag 41)."""
    header = struct.pack(">BBHBBHB", 1, 0, 1, 41, 2, original, 1)
    return outer.ipv4(outer.udp(header + inner, 50000, 37008), 17, SOURCE, HERE)


def frames_of(delivery: Delivery) -> list[bytes]:
    """Return the delivered frames."""
    return [delivery.frames.octets(row) for row in np.arange(len(delivery)).tolist()]
