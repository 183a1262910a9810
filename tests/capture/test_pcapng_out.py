"""tshark, libpcap, scapy and scalar code read the pcapng blocks that we build."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from capture_judges import Packet, libpcap_reads, tshark_reads

from lab import need
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.capture import pcapng_out
from tunnelbridge.capture.pcapng_out import Statistics, packet_records
from tunnelbridge.linux.record_writer import RecordWriter

NOW = 1_700_000_000_123_456_789
ETHERNET = bytes.fromhex("020000000001020000000002") + b"\x88\xb5"


class Block(NamedTuple):
    kind: int
    body: bytes


def blocks(octets: bytes) -> list[Block]:
    """Cut a file into blocks, as section 3.1 of the draft says; both lengths must agree."""
    found, at = [], 0
    while at < len(octets):
        kind, total = struct.unpack_from("=II", octets, at)
        assert total % 4 == 0
        assert total >= 12
        assert struct.unpack_from("=I", octets, at + total - 4) == (total,)
        found.append(Block(kind, octets[at + 8 : at + total - 4]))
        at += total
    assert at == len(octets)
    return found


def options(octets: bytes) -> list[tuple[int, bytes]]:
    """Read options to their end, which must be the block's end; padding must be zero."""
    found, at = [], 0
    while True:
        code, length = struct.unpack_from("=HH", octets, at)
        value = octets[at + 4 : at + 4 + length]
        assert len(value) == length
        beyond = at + 4 + length
        at = beyond + -length % 4
        assert not any(octets[beyond:at])
        if code == 0:
            assert length == 0
            assert at == len(octets)
            return found
        found.append((code, value))


class Enhanced(NamedTuple):
    interface: int
    time: int
    original: int
    octets: bytes
    options: list[tuple[int, bytes]]


def enhanced(block: Block) -> Enhanced:
    assert block.kind == 6
    interface, high, low, captured, original = struct.unpack_from("=IIIII", block.body)
    octets = block.body[20 : 20 + captured]
    assert len(octets) == captured
    after = 20 + captured + -captured % 4
    assert not any(block.body[20 + captured : after])
    return Enhanced(interface, high << 32 | low, original, octets, options(block.body[after:]))


def expected(
    octets: bytes, number: int, time: int, original: int, gap: int, truncated: bool, outbound: bool
) -> Enhanced:
    """What a packet should become, one at a time."""
    told: list[tuple[int, bytes]] = []
    if truncated:
        told.append((1, b"cut before it was received"))
    if truncated or gap:
        told.append((4, struct.pack("=Q", gap)))
    told.append((2, struct.pack("=I", 2 if outbound else 1)))
    return Enhanced(number, time, max(original, len(octets)), octets, told)


def packets(count: int) -> list[bytes]:
    """Packets whose lengths leave every remainder modulo 4; the first is empty."""
    return [
        (ETHERNET + index.to_bytes(4) + bytes([index % 251]) * 99)[: index * 7 % 118]
        for index in range(count)
    ]


def batch_of(octets: Sequence[bytes]) -> Batch:
    batch = from_packets(list(octets))
    batch.timestamp = NOW + 1_000_000_007 * np.arange(len(octets))
    batch.wire_length = batch.length + np.arange(len(octets)) % 3 * 1000
    batch.direction = (np.arange(len(octets)) % 2).astype(np.uint8)
    return batch


def flags_for(count: int) -> tuple[Any, Any, Any]:
    """Interfaces, gaps and truncation in all combinations."""
    number = np.arange(count)
    return number % 2, np.where(number // 2 % 2, number * 2**33 + 1, 0), number // 4 % 2 == 1


def write(path: Path, *parts: Any) -> bytes:
    """Write blocks and Records one after another, as the product does."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        writer = RecordWriter(fd, b"")
        for part in parts:
            if isinstance(part, bytes):
                writer.owe(part)
            else:
                assert writer.write(part).error is None
        assert writer.settle() is None
    finally:
        os.close(fd)
    return path.read_bytes()


def header(*interfaces: bytes) -> bytes:
    return b"".join([pcapng_out.section("app 1", "box", "Linux 6", "x86_64"), *interfaces])


@pytest.mark.parametrize("count", [0, 1, 2, 16, 255, 256, 257, 341, 342, 1024, 1025])
@pytest.mark.parametrize("heads", [False, True])
def test_packets_become_enhanced_blocks(tmp_path: Path, count: int, heads: bool) -> None:
    octets = packets(count)
    batch = batch_of(octets)
    number, gap, truncated = flags_for(count)
    if heads:
        lengths = [min(index % 19, len(each)) for index, each in enumerate(octets)]
        cut = [each[:length] for each, length in zip(octets, lengths, strict=True)]
        batch.head = np.frombuffer(b"".join(cut), np.uint8)
        batch.head_length = np.array(lengths, np.int64)
        batch.head_start = np.cumsum(batch.head_length) - batch.head_length
        batch.start = batch.start + batch.head_length
        batch.length = batch.length - batch.head_length
    records = packet_records(batch, number, gap, truncated)
    found = blocks(write(tmp_path / "x", records))
    assert [enhanced(block) for block in found] == [
        expected(octets[i], int(number[i]), int(batch.timestamp[i]), int(batch.wire_length[i]),
                 int(gap[i]), bool(truncated[i]), bool(batch.direction[i]))
        for i in range(count)
    ]  # fmt: skip
    assert records.size.tolist() == [len(block.body) + 12 for block in found]


def test_original_length_is_never_below_captured(tmp_path: Path) -> None:
    batch = from_packets([bytes(60), bytes(60)])
    batch.wire_length = np.array([3, 9000])
    none = np.zeros(2, np.int64)
    octets = write(tmp_path / "x", packet_records(batch, none, none, none > 0))
    assert [enhanced(block).original for block in blocks(octets)] == [60, 9000]


def test_section_and_interface_say_what_they_are_told() -> None:
    section, interface, bare = blocks(
        header(
            pcapng_out.interface("vxlan 192.0.2.1 vni 7", "über alles", "tcp port 80", 256),
            pcapng_out.interface("x"),
        )
    )
    assert section.kind == 0x0A0D0D0A
    assert struct.unpack_from("=IHHq", section.body) == (0x1A2B3C4D, 1, 0, -1)
    assert options(section.body[16:]) == [
        (1, b"host box"), (2, b"x86_64"), (3, b"Linux 6"), (4, b"app 1")
    ]  # fmt: skip
    assert interface.kind == bare.kind == 1
    assert struct.unpack_from("=HHI", interface.body) == (1, 0, 256)
    assert options(interface.body[8:]) == [
        (2, b"vxlan 192.0.2.1 vni 7"), (3, "über alles".encode()), (11, b"\0tcp port 80"), (9, b"\t")
    ]  # fmt: skip
    assert options(bare.body[8:]) == [(2, b"x"), (9, b"\t")]
    assert struct.unpack_from("=HHI", bare.body) == (1, 0, 262144)


def test_texts_are_utf8_whatever_the_command_line_held() -> None:
    odd = "é" * 4000 + "\udcff"
    (block,) = blocks(pcapng_out.interface("\udcff", odd))
    name, description = (value for _, value in options(block.body[8:])[:2])
    assert name.decode() == "?"
    assert set(description.decode()) == {"é"}
    assert 4000 < len(description) <= 4096


def test_statistics_have_the_high_word_first() -> None:
    told = Statistics(NOW, NOW + 5, received=10, lost=2**40, dropped=3)
    (block,) = blocks(pcapng_out.statistics(4, told))
    assert block.kind == 5
    assert struct.unpack_from("=III", block.body) == (4, (NOW + 5) >> 32, (NOW + 5) & 0xFFFFFFFF)
    assert options(block.body[12:]) == [
        (2, struct.pack("=II", NOW >> 32, NOW & 0xFFFFFFFF)),
        (3, struct.pack("=II", (NOW + 5) >> 32, (NOW + 5) & 0xFFFFFFFF)),
        (4, struct.pack("=Q", 10)),
        (5, struct.pack("=Q", 2**40)),
        (7, struct.pack("=Q", 3)),
        (8, struct.pack("=Q", 7)),
    ]


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, Batch, list[bytes]]:
    """A file with everything in it; the second interface comes after the first packets."""
    octets = [each + bytes(14) for each in packets(24)]
    batch = batch_of(octets)
    number, gap, truncated = flags_for(24)
    even, odd = number == 0, number == 1
    order = np.concatenate([np.flatnonzero(even), np.flatnonzero(odd)])
    first = packet_records(batch.select(even), number[even], gap[even], truncated[even])
    second = packet_records(batch.select(odd), number[odd], gap[odd], truncated[odd])
    write(
        tmp_path / "x.pcapng",
        header(pcapng_out.interface("vxlan 192.0.2.1 vni 7", "one", "ip", 262144)),
        first,
        pcapng_out.interface("erspan2 192.0.2.2 session 9", "two"),
        second,
        pcapng_out.statistics(0, Statistics(NOW, NOW + 9, 12, 5, 1)),
        pcapng_out.statistics(1, Statistics(NOW, NOW + 9, 12, 5, 1)),
    )
    return tmp_path / "x.pcapng", batch.select(order), [octets[i] for i in order.tolist()]


def test_tshark_and_libpcap_read_packets(whole: tuple[Path, Batch, list[bytes]]) -> None:
    need("tshark")
    path, batch, octets = whole
    written = [
        Packet(int(time), int(length), each)
        for time, length, each in zip(batch.timestamp, batch.wire_length, octets, strict=True)
    ]
    assert tshark_reads(path) == written
    read, error, _ = libpcap_reads(path)
    assert error is None
    assert read == written


def test_tshark_reads_interfaces_directions_drops_and_comments(
    whole: tuple[Path, Batch, list[bytes]],
) -> None:
    need("tshark", "capinfos")
    path, _, _ = whole
    names = ("interface_name", "interface_description", "packet_flags_direction", "drop_count",
             "comment")  # fmt: skip
    fields = [word for name in names for word in ("-e", f"frame.{name}")]
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "json", *fields],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    number, gap, truncated = flags_for(24)
    order = np.concatenate([np.flatnonzero(number == 0), np.flatnonzero(number == 1)])
    rows = [record["_source"]["layers"] for record in json.loads(done.stdout)]
    for index, row in zip(order.tolist(), rows, strict=True):
        second = number[index]
        assert row["frame.interface_name"] == [
            "erspan2 192.0.2.2 session 9" if second else "vxlan 192.0.2.1 vni 7"
        ]
        assert row["frame.interface_description"] == ["two" if second else "one"]
        direction = int(row["frame.packet_flags_direction"][0], 0)
        assert direction == (2 if index % 2 else 1)
        told = truncated[index] or gap[index]
        assert row.get("frame.drop_count") == ([str(gap[index])] if told else None)
        comments = ["cut before it was received"] if truncated[index] else None
        assert row.get("frame.comment") == comments
    info = subprocess.run(["capinfos", path], capture_output=True, text=True, check=True).stdout
    assert "Capture application: app 1" in info
    assert "Capture hardware:    x86_64" in info
    assert "Capture oper-sys:    Linux 6" in info
    assert "Capture comment:     host box" in info
    assert info.count("Number of stat entries = 1") == 2
    assert info.count("Number of packets = 12") == 2
    assert "Filter string = ip" in info
    assert "Time precision = nanoseconds (9)" in info


def test_scapy_reads_directions_and_interfaces(
    whole: tuple[Path, Batch, list[bytes]],
) -> None:
    from scapy.utils import RawPcapNgReader

    path, batch, octets = whole
    number, _, _ = flags_for(24)
    order = np.concatenate([np.flatnonzero(number == 0), np.flatnonzero(number == 1)])
    with RawPcapNgReader(str(path)) as reader:
        read = list(reader)
    assert [packet for packet, _ in read] == octets
    assert [told.wirelen for _, told in read] == batch.wire_length.tolist()
    assert [told.direction for _, told in read] == [2 if i % 2 else 1 for i in order.tolist()]
    names = (b"vxlan 192.0.2.1 vni 7", b"erspan2 192.0.2.2 session 9")
    assert [told.ifname for _, told in read] == [names[number[i]] for i in order.tolist()]
