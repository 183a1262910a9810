"""Frames for the generator: all flows of one kind and size, as one matrix of octets."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.wire.octets import checksum, sum_words

Frames = npt.NDArray[np.uint8]
"""Shape (flows, size): one Ethernet frame a row."""

IPV4_HEADER: Final = 20
UDP, GRE = 17, 47
VXLAN_PORT: Final = 4789
VNI: Final = 42
FIRST_PORT: Final = 10_000
PORTS: Final = 50_000


def plain(size: int, flows: int, mac: bytes) -> Frames:
    """Return UDP frames to ``mac``; a flow is a source address and port."""
    numbers = np.arange(flows)
    frames = _ethernet(size, flows, mac)
    packet = frames[:, 14:]
    _ipv4(packet, UDP, source=0x0A000001, destination=0xC0000202)
    packet[:, 12:16] = (0x0A000001 + numbers // PORTS).astype(">u4")[:, None].view(np.uint8)
    _udp(packet[:, IPV4_HEADER:], source=FIRST_PORT + numbers % PORTS, destination=9)
    _finish(packet)
    return frames


def vxlan(size: int, flows: int, mac: bytes, source: int, destination: int) -> Frames:
    """Return VXLAN datagrams with inner frames of ``size`` octets, one outer port a flow."""
    inner = plain(size, flows, bytes.fromhex("020000000202"))
    frames = _ethernet(14 + IPV4_HEADER + 16 + size, flows, mac)
    packet = frames[:, 14:]
    _ipv4(packet, UDP, source, destination)
    _udp(packet[:, IPV4_HEADER:], 49152 + np.arange(flows) % 16384, VXLAN_PORT)
    packet[:, 28:36] = np.frombuffer(struct.pack(">II", 0x08000000, VNI << 8), np.uint8)
    packet[:, 36:] = inner
    _finish(packet)
    return frames


def gre(size: int, flows: int, mac: bytes, source: int, destination: int) -> Frames:
    """Return GRE packets (transparent Ethernet, no options) with inner frames of ``size``."""
    inner = plain(size, flows, bytes.fromhex("020000000202"))
    frames = _ethernet(14 + IPV4_HEADER + 4 + size, flows, mac)
    packet = frames[:, 14:]
    _ipv4(packet, GRE, source, destination)
    packet[:, 20:24] = np.frombuffer(struct.pack(">HH", 0, 0x6558), np.uint8)
    packet[:, 24:] = inner
    _finish(packet)
    return frames


def _ethernet(size: int, flows: int, mac: bytes) -> Frames:
    frames = np.zeros((flows, size), np.uint8)
    header = mac + bytes.fromhex("02000000aaaa0800")
    frames[:, :14] = np.frombuffer(header, np.uint8)
    return frames


def _ipv4(packet: Frames, protocol: int, source: int, destination: int) -> None:
    header = struct.pack(
        ">BBHHHBBHII", 0x45, 0, packet.shape[1], 0, 0x4000, 64, protocol, 0, source, destination
    )
    packet[:, :IPV4_HEADER] = np.frombuffer(header, np.uint8)


def _udp(datagram: Frames, source: npt.NDArray[np.int64], destination: int) -> None:
    datagram[:, 0:2] = source.astype(">u2")[:, None].view(np.uint8)
    datagram[:, 2:6] = np.frombuffer(struct.pack(">HH", destination, datagram.shape[1]), np.uint8)


def _finish(packet: Frames) -> None:
    """Fill the IPv4 header's checksum."""
    header = np.ascontiguousarray(packet[:, :IPV4_HEADER])
    starts = np.arange(len(packet)) * IPV4_HEADER
    total = sum_words(header.reshape(-1), starts, np.full(len(packet), IPV4_HEADER))
    packet[:, 10:12] = checksum(total).astype(">u2")[:, None].view(np.uint8)
