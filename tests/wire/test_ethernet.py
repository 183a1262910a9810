"""Ethernet and VLAN tags: IEEE 802.3, 802.1Q, 802.1ad."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from golden import PACKET, Columns

from tunnelbridge.wire import ethernet
from tunnelbridge.wire.layer import Kind

MACS = "02000a0a0a0a 02000b0b0b0b "

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("Ethernet II, IPv4", MACS + "0800", {"kind": Kind.IPV4}),
    ("Ethernet II, IPv6", MACS + "86dd", {"kind": Kind.IPV6}),
    ("ARP is no packet to look into", MACS + "0806", {"kind": Kind.NONE}),
    ("802.3: a length, LLC follows", MACS + "0026", {"kind": Kind.NONE}),
    ("802.1Q", MACS + "8100 a2aa 0800", {"kind": Kind.IPV4}),
    ("802.1ad: two tags (tcpdump tests/802.1ad_QinQ.pcap)", MACS + "88a8 001e 8100 0064 86dd",
     {"kind": Kind.IPV6}),
    ("older types: 9100, 9200", MACS + "9100 0001 9200 0002 0800", {"kind": Kind.IPV4}),
    ("eight tags", MACS + "8100 0001 " * 8 + "0800", {"kind": Kind.IPV4}),
    ("nine tags: given up", MACS + "8100 0001 " * 9 + "0800",
     {"kind": Kind.NONE, "payload": 14 + 8 * 4}),
]  # fmt: skip

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", MACS + "08", "frame-short"),
    ("nothing", "", "frame-short"),
]


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(ethernet.decode, octets, columns, after=PACKET)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(ethernet.decode, octets, slug)


def test_a_cut_tag_is_no_tag() -> None:
    for octets in (MACS + "8100", MACS + "8100 0001 08"):
        columns = {"kind": Kind.NONE, "payload": 14}
        golden.check_reads(ethernet.decode, octets, columns, after=b"")


@pytest.mark.parametrize(
    ("octets", "tag"),
    [
        ("0800", 0),
        ("8100 a2aa 0800", 0x8100_A2AA),
        ("88a8 b00a 8100 0064 0800", 0x88A8_B00A),
        ("8100 0000 0800", 0x8100_0000),
    ],
)
def test_the_first_tag(octets: str, tag: int) -> None:
    frame = golden.octets(MACS + octets) + PACKET
    memory = np.frombuffer(frame, np.uint8)
    found = ethernet.ethertypes(memory, np.array([0]), np.array([len(frame)]))
    assert (found.ethertype[0], found.tag[0]) == (0x0800, tag)
    assert frame[found.payload[0] :] == PACKET
