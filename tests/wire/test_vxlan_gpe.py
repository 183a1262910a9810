"""VXLAN-GPE: draft-ietf-nvo3-vxlan-gpe-12 §3."""

from __future__ import annotations

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import vxlan_gpe
from tunnelbridge.wire.layer import Kind

ACCEPTED: list[tuple[str, str, Columns]] = [
    (
        "tcpdump tests/nsh-over-vxlan-gpe.pcap: I, P, NSH",
        """0c 0000 04
           ffffff 00""",
        {"kind": Kind.NSH, "identifier": 0xFFFFFF},
    ),
    ("§3.2: IPv4", "0c 0000 01 a5c30f 00", {"kind": Kind.IPV4, "identifier": 0xA5C30F}),
    ("§3.2: IPv6", "0c 0000 02 000001 00", {"kind": Kind.IPV6, "identifier": 1}),
    ("§3.2: Ethernet", "0c 0000 03 000001 00", {"kind": Kind.ETHERNET, "identifier": 1}),
    ("-08: MPLS", "0c 0000 05 000001 00", {"kind": Kind.MPLS, "identifier": 1}),
    ("§3.1: without P it is VXLAN", "08 0000 01 000001 00", {"kind": Kind.ETHERNET, "identifier": 1}),
    ("§3: reserved bits, B", "ce ffff 03 000001 ff", {"kind": Kind.ETHERNET, "identifier": 1}),
]  # fmt: skip

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "0c000003 000001", "gpe-short"),
    ("nothing", "", "gpe-short"),
    ("§3.1: Ver MUST be 0", "1c000003 00000100", "gpe-version"),
    ("§3.1: Ver MUST be 0, high bit", "2c000003 00000100", "gpe-version"),
    ("§3.1: O is OAM", "0d000003 00000100", "gpe-oam"),
    ("§3.2: a protocol without a frame", "0c000000 00000100", "gpe-protocol"),
    ("§3.2: vBNG", "0c000007 00000100", "gpe-protocol"),
]


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(vxlan_gpe.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(vxlan_gpe.decode, octets, slug)
