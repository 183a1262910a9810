"""The judge's comparison, against files that scapy wrote and differences made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.utils import RawPcapWriter

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

import compare
from compare import Frame

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
MEMBER = bytes.fromhex("02000a0a0a0a")


def segment(sequence: int, source: str = A, port: int = 1000) -> Frame:
    destination = B if source == A else A
    packet = Ether(src=source, dst=destination) / IP() / TCP(sport=port, seq=sequence) / b"data"
    return Frame(bytes(packet), len(packet))


FRAMES = [segment(n) for n in range(4)] + [segment(n, source=B) for n in range(4)]


@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_reads_what_scapy_writes(tmp_path: Path, nano: bool, endianness: str) -> None:
    path = tmp_path / "a.pcap"
    with RawPcapWriter(str(path), linktype=1, nano=nano, endianness=endianness) as writer:
        writer.write_header(None)
        for frame in FRAMES:
            writer.write_packet(frame.octets, sec=1, usec=2, caplen=len(frame.octets), wirelen=9000)

    assert compare.read(path) == [Frame(frame.octets, 9000) for frame in FRAMES]


def test_leaves_out_a_record_that_is_still_being_written(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    with RawPcapWriter(str(path), linktype=1) as writer:
        writer.write_header(None)
        for frame in FRAMES:
            writer.write_packet(frame.octets)
    whole = path.read_bytes()

    last = 16 + len(FRAMES[-1].octets)
    for cut in range(1, last + 1):
        path.write_bytes(whole[:-cut])
        assert compare.read(path) == FRAMES[:-1]
    path.write_bytes(whole[:10])
    assert compare.read(path) == []
    assert compare.read(tmp_path / "nothing") == []


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(b"\x0a\x0d\x0d\x0a" * 20)

    with pytest.raises(ValueError, match="not a pcap"):
        compare.read(path)


def test_equal_captures_do_not_differ() -> None:
    assert not compare.difference(FRAMES, list(FRAMES))
    assert not compare.difference([], [])


def test_the_two_directions_may_mix_otherwise() -> None:
    assert not compare.difference(FRAMES, [*FRAMES[4:], *FRAMES[:4]])


def test_every_octet_counts() -> None:
    for at in range(len(FRAMES[0].octets)):
        octets = bytearray(FRAMES[0].octets)
        octets[at] ^= 1
        changed = Frame(bytes(octets), FRAMES[0].wire_length)

        found = compare.difference(FRAMES, [changed, *FRAMES[1:]])

        assert found
        assert (found.missing, found.extra) == ([FRAMES[0]], [changed])


def test_the_length_on_the_wire_counts() -> None:
    shorter = FRAMES[0]._replace(wire_length=FRAMES[0].wire_length - 1)

    assert compare.difference(FRAMES, [shorter, *FRAMES[1:]])


def test_missing_and_doubled_frames_are_told() -> None:
    found = compare.difference(FRAMES, [*FRAMES[:-1], FRAMES[0]])

    assert (found.missing, found.extra) == ([FRAMES[-1]], [FRAMES[0]])
    assert str(found).startswith("1 missing (first: 58 octets, 020000")
    assert "1 not of the wire" in str(found)


def test_order_within_a_flow_counts() -> None:
    swapped = [FRAMES[1], FRAMES[0], *FRAMES[2:]]

    assert str(compare.difference(FRAMES, swapped)) == "1 flows in another order"


FROM_A, FROM_B = Ether(src=A, dst=B), Ether(src=B, dst=B)
OPTIONS = FROM_A / IP(options=b"\1" * 8)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FROM_A / IP() / TCP(), FROM_B / IP() / TCP()),
        (FROM_A / IP() / TCP(), FROM_A / IP() / TCP(dport=81)),
        (OPTIONS / TCP(), OPTIONS / TCP(sport=9)),
        (FROM_A / IP() / TCP(), FROM_A / IP(dst="192.0.2.9") / TCP()),
        (FROM_A / IPv6() / TCP(), FROM_A / IPv6() / TCP(sport=9)),
        (FROM_A / ARP(pdst="192.0.2.1"), FROM_B / ARP(pdst="192.0.2.1")),
    ],
)
def test_flows_are_told_apart(one: Ether, other: Ether) -> None:
    assert compare.flow(bytes(one)) != compare.flow(bytes(other))


def test_a_flow_is_one_whatever_it_says() -> None:
    a, b = (FROM_A / IP(id=n, ttl=n) / TCP(seq=n, flags="P") / bytes(n) for n in (3, 60))

    assert compare.flow(bytes(a)) == compare.flow(bytes(b))


def test_readdressing_changes_the_destination_mac_only() -> None:
    (frame,) = compare.readdressed(FRAMES[:1], MEMBER)

    assert frame.octets[:6] == MEMBER
    assert frame.octets[6:] == FRAMES[0].octets[6:]
    assert frame.wire_length == FRAMES[0].wire_length


def test_cuts_between_marks() -> None:
    first, last = Frame(b"..first..", 9), Frame(b"..last..", 8)
    frames = [FRAMES[0], first, *FRAMES[1:3], last, FRAMES[3]]

    assert compare.between(frames, b"first", b"last") == FRAMES[1:3]
    assert compare.holds(frames, b"last")
    assert not compare.holds(frames, b"least")
