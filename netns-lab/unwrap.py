"""Take a tunnel off captured packets, in plain code that shares nothing with what it judges.

Outer packets: Ethernet, IPv4 without fragments. Formats: GRE (RFC 2784, 2890) with Ethernet or
ERSPAN II/III inside, VXLAN (RFC 7348, UDP 4789), Juniper's header (UDP 8099).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from compare import Frame

GRE, UDP = 47, 17
ETHERNET, ERSPAN2, ERSPAN3 = 0x6558, 0x88BE, 0x22EB
VXLAN_PORT, JUNIPER_PORT = 4789, 8099


class Carried(NamedTuple):
    """A frame that a tunnel carried: between which addresses, how, and with which identifier."""

    source: str
    destination: str
    kind: str
    identifier: int
    source_port: int
    frame: Frame
    outer: Frame


def unwrap(frames: Sequence[Frame]) -> list[Carried]:
    """Return what the frames that are tunnels carry, in order; all others are passed over."""
    found = (_unwrap(frame) for frame in frames)
    return [carried for carried in found if carried is not None]


def inner(frames: Sequence[Frame]) -> list[Frame]:
    """Return the frames inside only."""
    return [carried.frame for carried in unwrap(frames)]


def _unwrap(outer: Frame) -> Carried | None:
    octets = outer.octets
    if octets[12:14] != b"\x08\x00":
        return None
    ip = octets[14 : 14 + struct.unpack("!H", octets[16:18])[0]]
    payload = ip[4 * (ip[0] & 15) :]
    if ip[9] == GRE:
        found = _gre(payload)
    elif ip[9] == UDP:
        found = _udp(payload)
    else:
        return None
    if found is None:
        return None
    kind, identifier, port, frame = found
    source, destination = (str(IPv4Address(ip[at : at + 4])) for at in (12, 16))
    return Carried(source, destination, kind, identifier, port, Frame(frame, len(frame)), outer)


def _gre(packet: bytes) -> tuple[str, int, int, bytes] | None:
    flags, protocol = struct.unpack("!HH", packet[:4])
    at = 4 + 4 * bool(flags & 0x8000)
    key = struct.unpack("!I", packet[at : at + 4])[0] if flags & 0x2000 else 0
    at += 4 * bool(flags & 0x2000) + 4 * bool(flags & 0x1000)
    if protocol == ETHERNET:
        return "gre", key, 0, packet[at:]
    if protocol == ERSPAN2 and flags & 0x1000:
        return (
            "erspan2",
            struct.unpack("!H", packet[at + 2 : at + 4])[0] & 0x3FF,
            0,
            packet[at + 8 :],
        )
    if protocol == ERSPAN3:
        session = struct.unpack("!H", packet[at + 2 : at + 4])[0] & 0x3FF
        sub_header = 8 * (packet[at + 11] & 1)
        return "erspan3", session, 0, packet[at + 12 + sub_header :]
    return None


def _udp(datagram: bytes) -> tuple[str, int, int, bytes] | None:
    source, destination = struct.unpack("!HH", datagram[:4])
    if destination == VXLAN_PORT:
        vni = struct.unpack("!I", datagram[12:16])[0] >> 8
        return "vxlan", vni, source, datagram[16:]
    if destination == JUNIPER_PORT:
        at = 8
        while datagram[at] != 255:  # type, length, value; 255 is the last
            at += 2 + datagram[at + 1]
        return "juniper", 0, source, datagram[at + 2 :]
    return None
