"""Packets built by obvious scalar code: what goes around a mirrored frame, and what answers it."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import numpy as np

from tunnelbridge.batch import INBOUND, from_packets
from tunnelbridge.wire.encapsulation import Encapsulation
from tunnelbridge.wire.layer import Clones

MACS = bytes.fromhex("02000a0a0a0a 02000b0b0b0b")


def internet_checksum(octets: bytes) -> int:
    """Return RFC 1071's checksum."""
    octets += b"\0" * (len(octets) % 2)
    total = sum(int.from_bytes(octets[i : i + 2]) for i in range(0, len(octets), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    payload: bytes,
    protocol: int,
    source: str,
    destination: str,
    identification: int = 1,
    fragment: int = 0,
) -> bytes:
    """Return an IPv4 packet; ``fragment`` is the field with its flags."""
    header = struct.pack(
        ">BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), identification, fragment, 64, protocol, 0),
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    return header[:10] + internet_checksum(header).to_bytes(2) + header[12:] + payload


def ipv6(payload: bytes, next_header: int, source: str, destination: str) -> bytes:
    """Return an IPv6 packet."""
    header = struct.pack(">IHBB", 6 << 28, len(payload), next_header, 64)
    return header + ip_address(source).packed + ip_address(destination).packed + payload


def ip(payload: bytes, protocol: int, source: str, destination: str, number: int = 1) -> bytes:
    """Return a packet of the addresses' version."""
    if ":" in destination:
        return ipv6(payload, protocol, source, destination)
    return ipv4(payload, protocol, source, destination, number)


def fragments(packet: bytes, first: int, number: int) -> list[bytes]:
    """Return a packet in two fragments, ``first`` octets of payload in the first."""
    if packet[0] >> 4 == 4:
        addresses = str(ip_address(packet[12:16])), str(ip_address(packet[16:20]))
        head, tail = packet[20 : 20 + first], packet[20 + first :]
        return [
            ipv4(head, packet[9], *addresses, number, 0x2000),
            ipv4(tail, packet[9], *addresses, number, first // 8),
        ]
    addresses = str(ip_address(packet[8:24])), str(ip_address(packet[24:40]))
    head, tail = packet[40 : 40 + first], packet[40 + first :]
    return [
        ipv6(struct.pack(">BBHI", packet[6], 0, 1, number) + head, 44, *addresses),
        ipv6(struct.pack(">BBHI", packet[6], 0, first, number) + tail, 44, *addresses),
    ]


def udp(payload: bytes, source: int, destination: int) -> bytes:
    """Return a UDP datagram without checksum."""
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload


def tcp(payload: bytes, source: int, destination: int, sequence: int = 1) -> bytes:
    """Return a TCP segment, its checksum left out."""
    return (
        struct.pack(">HHIIBBHHH", source, destination, sequence, 1, 0x50, 16, 512, 0, 0) + payload
    )


def error(quote: bytes, source: str, destination: str) -> bytes:
    """Return the ICMP or ICMPv6 error "too big" that quotes a packet."""
    if ":" in destination:
        return ipv6(struct.pack(">BBHI", 2, 0, 0, 1280) + quote, 58, source, destination)
    return ipv4(struct.pack(">BBHI", 3, 4, 0, 1400) + quote, 1, source, destination)


def frame(packet: bytes, *tags: int) -> bytes:
    """Return an Ethernet frame with 802.1Q tags (TCIs)."""
    stack = b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
    return MACS + stack + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet


def clones(frames: list[bytes], **columns: int) -> Clones:
    """Return clones of frames without tags; ``columns`` are set for all of them."""
    batch = from_packets(frames, columns.get("timestamp", 0), columns.get("direction", INBOUND))
    batch.wire_length[:] = columns.get("wire_length", batch.wire_length)
    count = len(frames)
    return Clones(
        batch=batch,
        length=batch.total_length,
        entropy=np.full(count, columns.get("entropy", 0x1234)),
        tag=np.full(count, columns.get("tag", 0)),
        truncated=np.full(count, bool(columns.get("truncated", 0))),
        sequence=np.full(count, columns.get("sequence", 7)),
        ethertype=np.array([0x86DD if each[:1] == b"\x60" else 0x0800 for each in frames]),
    )


def tunnelled(
    tunnel: Encapsulation, inner: bytes, source: str, destination: str, **columns: int
) -> bytes:
    """Return the packet a tunnel sends for a frame; a tunnel of bare IP loses its MAC header."""
    if tunnel.bare_ip:
        inner = inner[14:]
    row = tunnel.rows(clones([inner], **columns))[0].tobytes()
    number = columns.get("identification", 1)
    return ip(row + inner, tunnel.ip_protocol, source, destination, number)
