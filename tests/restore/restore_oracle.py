"""One packet at a time, obviously: what each packet of a batch is on the wire.

Also the builder of the frames that the tests feed in. Knows Ethernet, tags, IPv4, IPv6 with
extension headers, TCP and UDP; tunnels are judged by scapy and by the kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

TAGS = {0x8100, 0x88A8, 0x9100, 0x9200}
TCP, UDP = 6, 17


@dataclass
class Vnet:
    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def row(self) -> tuple[int, ...]:
        return (self.flags, self.gso_type, self.hdr_len, self.gso_size,
                self.csum_start, self.csum_offset)  # fmt: skip


@dataclass
class Packet:
    """A frame as the ring gives it; ``captured`` octets of it are there (all if None)."""

    frame: bytes
    vnet: Vnet = field(default_factory=Vnet)
    vlan: int = 0
    inbound: bool = False


def ones_sum(octets: bytes) -> int:
    if len(octets) % 2:
        octets += b"\0"
    total = sum(struct.unpack(f">{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(octets: bytes) -> int:
    return ~ones_sum(octets) & 0xFFFF


def set16(frame: bytearray, at: int, value: int) -> None:
    frame[at : at + 2] = struct.pack(">H", value & 0xFFFF)


def get16(frame: bytes, at: int) -> int:
    return struct.unpack_from(">H", frame, at)[0]


def pseudo(frame: bytes, ip: int, destination: int, protocol: int, length: int) -> bytes:
    size, source = (4, ip + 12) if frame[ip] >> 4 == 4 else (16, ip + 8)
    return (frame[source : source + size] + frame[destination : destination + size]
            + struct.pack(">II", length, protocol))  # fmt: skip


def locate(frame: bytes) -> tuple[int, int, int, int] | None:
    """Return IP offset, transport offset, protocol and final destination offset."""
    at = 12
    try:
        for _ in range(9):
            kind = get16(frame, at)
            if kind not in TAGS:
                break
            at += 4
        ip = at + 2
        if kind == 0x0800 and frame[ip] >> 4 == 4 and frame[ip] & 15 >= 5:
            return ip, ip + 4 * (frame[ip] & 15), frame[ip + 9], ip + 16
        if kind != 0x86DD or frame[ip] >> 4 != 6:
            return None
        protocol, at, destination = frame[ip + 6], ip + 40, ip + 24
        for _ in range(8):
            if protocol not in (0, 43, 60, 51):
                break
            octets = (frame[at + 1] + 1) * 8
            if protocol == 43 and frame[at + 3]:
                destination = at + 8 if frame[at + 2] == 4 else at + octets - 16
            if protocol == 51:
                octets = (frame[at + 1] + 2) * 4
            protocol, at = frame[at], at + octets
        return ip, at, protocol, destination
    except (IndexError, struct.error):
        return None


def segments(packet: Packet) -> list[bytes] | None:
    """Cut one super-packet; None if that cannot be done."""
    frame, vnet = packet.frame, packet.vnet
    wanted = {1: TCP, 4: TCP, 5: UDP}.get(vnet.gso_type & 0x0F)
    where = locate(frame)
    if wanted is None or where is None or not vnet.gso_size:
        return None
    ip, at, protocol, destination = where
    if protocol != wanted or (vnet.flags & 1 and at != vnet.csum_start) or at + 8 > len(frame):
        return None
    if protocol == TCP:
        if at + 13 > len(frame) or frame[at + 12] >> 4 < 5:
            return None
        end = at + 4 * (frame[at + 12] >> 4)
    else:
        end = at + 8
    if end > len(frame):
        return None
    payload = frame[end:]
    pieces = [payload[k : k + vnet.gso_size] for k in range(0, len(payload), vnet.gso_size)]
    result = []
    for number, piece in enumerate(pieces or [b""]):
        head = bytearray(frame[:end])
        if head[ip] >> 4 == 4:
            first = get16(frame, ip + 4)
            fixed = (packet.inbound and protocol == TCP and not first
                     and get16(frame, ip + 6) & 0x4000)  # fmt: skip
            set16(head, ip + 2, end - ip + len(piece))
            set16(head, ip + 4, first if fixed else first + number)
            set16(head, ip + 10, 0)
            set16(head, ip + 10, checksum(bytes(head[ip : ip + 4 * (head[ip] & 15)])))
        else:
            set16(head, ip + 4, end - ip - 40 + len(piece))
        length = end - at + len(piece)
        if protocol == TCP:
            sequence = struct.unpack_from(">I", frame, at + 4)[0] + number * vnet.gso_size
            struct.pack_into(">I", head, at + 4, sequence % 2**32)
            if number < len(pieces) - 1:
                head[at + 13] &= ~0x09
            if number and vnet.gso_type & 0x80:
                head[at + 13] &= ~0x80
            field_at = at + 16
        else:
            set16(head, at + 4, length)
            field_at = at + 6
        set16(head, field_at, 0)
        covered = pseudo(frame, ip, destination, protocol, length) + bytes(head[at:]) + piece
        value = checksum(covered)
        set16(head, field_at, value or (0xFFFF if protocol == UDP else 0))
        result.append(bytes(head) + piece)
    return result


def completed(packet: Packet) -> bytes:
    """Finish a partial checksum where there is one."""
    frame, vnet = bytearray(packet.frame), packet.vnet
    at = vnet.csum_start + vnet.csum_offset
    if vnet.flags & 1 and at + 2 <= len(frame):
        set16(frame, at, checksum(bytes(frame[vnet.csum_start :])) or 0xFFFF)
    return bytes(frame)


def tagged(frame: bytes, vlan: int) -> bytes:
    if not vlan or len(frame) < 12:
        return frame
    return frame[:12] + struct.pack(">I", vlan) + frame[12:]


def restored(packet: Packet) -> list[bytes]:
    """Return the frames that are on the wire."""
    is_super = packet.vnet.gso_type & 0x0F
    frames = segments(packet) or [packet.frame] if is_super else [completed(packet)]
    return [tagged(frame, packet.vlan) for frame in frames]


def build(
    version: int = 4, protocol: int = TCP, payload: bytes = b"", *, tags: tuple[int, ...] = (),
    options: bytes = b"", ip_options: bytes = b"", extensions: bytes = b"", next_header: int = -1,
    ident: int = 1, sequence: int = 1, flags: int = 0x18, fragment: int = 0x4000,
) -> tuple[bytes, int]:  # fmt: skip
    """Return a frame with the pseudo-header's sum as its checksum, and where its TCP or UDP begins."""
    link = bytes.fromhex("020000000002020000000001")
    for tag in tags:
        link += struct.pack(">I", tag)
    if protocol == TCP:
        rest = struct.pack(">HHIIHHHH", 40000, 80, sequence, 7, (20 + len(options)) << 10 | flags,
                           500, 0, 0) + options  # fmt: skip
        field_at = 16
    else:
        rest = struct.pack(">HHHH", 40000, 53, (8 + len(payload)) & 0xFFFF, 0)
        field_at = 6
    length = len(rest) + len(payload)
    if version == 4:
        total = 20 + len(ip_options) + length
        network = bytearray(struct.pack(
            ">BBHHHBBH4s4s", 0x45 + len(ip_options) // 4, 0, total if total < 65536 else 0, ident,
            fragment, 64, protocol, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
            + ip_options)  # fmt: skip
        set16(network, 10, checksum(bytes(network)))
        kind, destination = 0x0800, 16
    else:
        total = len(extensions) + length
        network = bytearray(struct.pack(
            ">IHBB16s16s", 0x60000000, total if total < 65536 else 0,
            next_header if extensions else protocol, 64,
            bytes.fromhex("fd" + "00" * 14 + "01"), bytes.fromhex("fd" + "00" * 14 + "02"))
            + extensions)  # fmt: skip
        kind, destination = 0x86DD, 24
    transport = bytearray(rest)
    set16(transport, field_at, ones_sum(pseudo(bytes(network), 0, destination, protocol, length)))
    at = len(link) + 2 + len(network)
    return link + struct.pack(">H", kind) + bytes(network) + bytes(transport) + payload, at
