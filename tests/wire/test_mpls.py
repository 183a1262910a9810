"""MPLS label stacks: RFC 3032, 4023, 7510, 4385."""

from __future__ import annotations

import golden
import pytest
from golden import FRAME, PACKET, Columns

from tunnelbridge.wire import mpls
from tunnelbridge.wire.layer import Kind

V6 = bytes.fromhex("60000000 0008 3b40" + "20010db8" * 8) + bytes(8)
LLC = bytes.fromhex("0180c2000000 0019 69dfdc01 0026 424203") + bytes(43)  # STP, 60 octets
QEMU = bytes.fromhex("060011223344 525400123456 0800") + PACKET
"""Octets 2 and 3 of QEMU's addresses look like a length of 18."""

ACCEPTED: list[tuple[str, str, Columns]] = [
    (
        "tcpdump tests/mpls-over-udp.pcap: label 21, IPv4",
        "0001 513f" + PACKET.hex(),
        {"payload": 4, "kind": Kind.IPV4, "identifier": 21},
    ),
    (
        "RFC 3032 §2.1: three labels, the last one names the stream",
        "fffff0ff 10000001 a5c3ff01" + PACKET.hex(),
        {"payload": 12, "kind": Kind.IPV4, "identifier": 0xA5C3F},
    ),
    ("IPv6", "00064140" + V6.hex(), {"payload": 4, "kind": Kind.IPV6, "identifier": 100}),
    (
        "skydive contrail-udp-mpls-eth-and-ipv4.pcap: Ethernet, MAC 02:…, no control word",
        "00064140" + FRAME.hex(),
        {"payload": 4, "kind": Kind.ETHERNET, "identifier": 100},
    ),
    *(
        (
            f"Ethernet, MAC {nibble}…, {'a' if word else 'no'} control word",
            "00064140" + word + nibble + FRAME.hex()[2:],
            {"payload": 4 + len(word) // 2, "kind": Kind.ETHERNET, "identifier": 100},
        )
        for nibble in ("00", "06", "45", "46", "60", "6e", "f0")
        for word in ("", "00000001")
    ),
    (
        "RFC 4448 §4.6: control word, source address of QEMU",
        "00064140 00000000" + QEMU.hex(),
        {"payload": 8, "kind": Kind.ETHERNET, "identifier": 100},
    ),
    (
        "source address of QEMU, no control word",
        "00064140" + QEMU.hex(),
        {"payload": 4, "kind": Kind.ETHERNET, "identifier": 100},
    ),
    (
        "contrail_mplsoudp.lua: control word, then IPv4",
        "00064140 00000000" + PACKET.hex(),
        {"payload": 8, "kind": Kind.IPV4, "identifier": 100},
    ),
    (
        "control word, then IPv6",
        "00064140 00000000" + V6.hex(),
        {"payload": 8, "kind": Kind.IPV6, "identifier": 100},
    ),
    (
        "STP, no control word",
        "00064140" + LLC.hex(),
        {"payload": 4, "kind": Kind.ETHERNET, "identifier": 100},
    ),
    (
        "STP, control word",
        "00064140 00000000" + LLC.hex(),
        {"payload": 8, "kind": Kind.ETHERNET, "identifier": 100},
    ),
]

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "000151", "mpls-short"),
    ("nothing", "", "mpls-short"),
    ("RFC 3032: no bottom of stack", "00015040", "mpls-short"),
    ("no bottom of stack in 16 labels", "00015040" * 17, "mpls-short"),
    ("a label and nothing", "0001513f", "mpls-payload"),
    ("IPv4 with a wrong checksum", "0001513f" + PACKET.hex().replace("6647", "6648"),
     "mpls-payload"),
    ("nothing known", "0001513f" + "ff" * 60, "mpls-payload"),
    ("what is behind four octets, but they do not begin with 0",
     "0001513f 10000000" + FRAME.hex(), "mpls-payload"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(
        mpls.decode, octets, columns | {"end": len(golden.octets(octets))}, after=b""
    )


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(mpls.decode, octets, slug)
