"""Bulk TCP for the interop tests: real transfers, made-up tagged super-packets, plain reassembly."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from live import compare, inside

PORT = 5201
PACE = 20_000_000
"""Octets a second: super-packets stay, and no queue of the lab is ever full."""
SO_MAX_PACING_RATE, SOL_PACKET, PACKET_VNET_HDR = 47, 263, 15
NEEDS_CSUM, TCPV4, TCPV6 = 1, 1, 4


class Segment(NamedTuple):
    """What a scalar reading of one frame finds: ``flow`` is addresses and ports as they stand."""

    flow: bytes
    sequence: int
    syn: bool
    payload: bytes
    tags: tuple[int, ...]


def content(octets: int, seed: int) -> bytes:
    """Return octets that are the same each time."""
    return random.Random(seed).randbytes(octets)


def transfer(client: str, server: str, address: str, up: bytes, down: bytes) -> None:
    """Send ``up`` from the client and ``down`` from the server; assert that both arrived whole."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = inside(server, lambda: socket.create_server((address, PORT), family=family))
    got: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            pace(connection)
            got.append(read(connection, len(up)))
            connection.sendall(down)

    def ask() -> bytes:
        with socket.create_connection((address, PORT), timeout=20) as connection:
            pace(connection)
            connection.sendall(up)
            return read(connection, len(down))

    with listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        answer = inside(client, ask)
        thread.join(20)
    assert got == [up]
    assert answer == down


def pace(connection: socket.socket) -> None:
    """Let the kernel's TCP send no faster than the lab can be watched."""
    connection.settimeout(20)
    connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, PACE)


def read(connection: socket.socket, octets: int) -> bytes:
    """Read so many octets; fewer if the other side ends."""
    parts: list[bytes] = []
    while octets > 0 and (part := connection.recv(min(octets, 1 << 20))):
        parts.append(part)
        octets -= len(part)
    return b"".join(parts)


# --- super-packets with VLAN tags, which only VLAN devices make otherwise ---


def super_packets(data: bytes, tags: Sequence[int], ipv6: bool, mss: int) -> Iterator[bytes]:
    """Yield virtio-net headers with tagged TCP super-packets that carry ``data`` after a SYN.

    Checksums are partial, as in what a VLAN device with TSO hands to the interface below it.
    """
    yield _super_packet(b"", 999, 2, tags, ipv6, mss)
    size = 40 * mss
    for at in range(0, len(data), size):
        push = 8 if at + size >= len(data) else 0
        yield _super_packet(data[at : at + size], 1000 + at, 16 | push, tags, ipv6, mss)


def _super_packet(
    payload: bytes, sequence: int, flags: int, tags: Sequence[int], ipv6: bool, mss: int
) -> bytes:
    length = 20 + len(payload)
    if ipv6:
        addresses = socket.inet_pton(socket.AF_INET6, "2001:db8:1::1")
        addresses += socket.inet_pton(socket.AF_INET6, "2001:db8:1::2")
        ip = struct.pack("!IHBB", 6 << 28, length, 6, 64) + addresses
    else:
        addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2")
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, sequence & 0xFFFF, 0x4000, 64, 6, 0)
        ip = ip[:10] + struct.pack("!H", 0xFFFF ^ ones_sum(ip + addresses)) + addresses
    partial = ones_sum(addresses + struct.pack("!HH", 6, length))
    tcp = struct.pack("!HHIIBBHHH", 40000, PORT, sequence, 1, 80, flags, 1024, partial, 0)
    macs = bytes.fromhex("020000000102020000000101")
    stack = b"".join(struct.pack("!I", tag) for tag in tags)
    head = macs + stack + (b"\x86\xdd" if ipv6 else b"\x08\x00") + ip
    kind = (TCPV6 if ipv6 else TCPV4) if len(payload) > mss else 0
    gso = (len(head) + 20, mss) if kind else (0, 0)
    return struct.pack("=BBHHHH", NEEDS_CSUM, kind, *gso, len(head), 16) + head + tcp + payload


def ones_sum(octets: bytes) -> int:
    """Return the one's complement sum of 16-bit words."""
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def inject(namespace: str, interface: str, packets: Sequence[bytes]) -> None:
    """Send packets that begin with a virtio-net header out of an interface."""

    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sock.bind((interface, 0))
            for packet in packets:
                sock.send(packet)
                time.sleep(len(packet) / PACE)

    inside(namespace, work)


# --- what became of it ---


def segment(frame: bytes) -> Segment | None:
    """Read one frame of a transfer; None for everything else."""
    at, tags = 12, []
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        tags.append(int.from_bytes(frame[at : at + 4], "big"))
        at += 4
    kind, at = frame[at : at + 2], at + 2
    if kind == b"\x08\x00" and frame[at + 9] == 6:
        end = at + int.from_bytes(frame[at + 2 : at + 4], "big")
        tcp, addresses = at + 4 * (frame[at] & 15), frame[at + 12 : at + 20]
    elif kind == b"\x86\xdd" and frame[at + 6] == 6:
        end = at + 40 + int.from_bytes(frame[at + 4 : at + 6], "big")
        tcp, addresses = at + 40, frame[at + 8 : at + 40]
    else:
        return None
    ports, sequence = frame[tcp : tcp + 4], int.from_bytes(frame[tcp + 4 : tcp + 8], "big")
    if PORT not in struct.unpack("!HH", ports):
        return None
    payload = frame[tcp + 4 * (frame[tcp + 12] >> 4) : end]
    return Segment(addresses + ports, sequence, bool(frame[tcp + 13] & 2), payload, tuple(tags))


def of_transfer(frames: Sequence[compare.Frame]) -> list[compare.Frame]:
    """Return the frames that belong to a transfer."""
    return [frame for frame in frames if segment(frame.octets)]


def reassemble(frames: Sequence[compare.Frame]) -> list[bytes]:
    """Return the octet stream of each flow and direction; None of it may be missing."""
    flows: dict[bytes, list[Segment]] = {}
    for frame in frames:
        found = segment(frame.octets)
        assert found is not None
        flows.setdefault(found.flow, []).append(found)
    return [_stream(segments) for segments in flows.values()]


def _stream(segments: list[Segment]) -> bytes:
    first = next(each.sequence for each in segments if each.syn) + 1
    stream = bytearray()
    for each in sorted(segments, key=lambda each: (each.sequence + each.syn - first) % (1 << 32)):
        at = (each.sequence + each.syn - first) % (1 << 32)
        if each.payload:
            assert at <= len(stream), f"{at - len(stream)} octets are missing at {len(stream)}"
            stream[at : at + len(each.payload)] = each.payload
    return bytes(stream)


def checksum_states(path: Path) -> dict[str, Counter[str]]:
    """Return tshark's verdicts over a file: ``1`` good, ``0`` bad, ``2`` not checked."""
    checked = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    fields = ("ip.checksum.status", "tcp.checksum.status", "udp.checksum.status")
    done = subprocess.run(
        ["tshark", "-n", "-r", path, *checked, "-otcp.desegment_tcp_streams:FALSE", "-Tfields"]
        + [f"-e{field}" for field in fields],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {
        field.partition(".")[0]: Counter(row[column] for row in rows if row[column])
        for column, field in enumerate(fields)
    }
