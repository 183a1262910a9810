"""GENEVE: RFC 8926 §3.4 and §3.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import pytest
from golden import Columns

from tunnelbridge.batch import INBOUND, OUTBOUND
from tunnelbridge.wire import geneve
from tunnelbridge.wire.encapsulation import Encapsulation, geneve_tunnel
from tunnelbridge.wire.layer import Kind

FRAME: Columns = {"kind": Kind.ETHERNET}

VECTORS: list[tuple[str, str, Columns, Callable[[], Encapsulation], Columns]] = [
    (
        "RFC 8926 §3.4: no options",
        """00 00 6558
           a5c30f 00""",
        FRAME | {"identifier": 0xA5C30F},
        lambda: geneve_tunnel(6081, 0xA5C30F, False),
        {},
    ),
    (
        "wireshark packet-geneve.c: cPacket's metadata tells the original length",
        """07 00 6558
           000001 00
           0164 00 06        # class, type, 6 words
           00000007          # sequence
           05ea 00 00        # original length 1514, reserved, version
           0000 6553f100     # PTP seconds: 1700000000
           075bcd15 0000     # nanoseconds, fraction
           0000 0000         # device, port""",
        FRAME
        | {"identifier": 1, "original_length": 1514}
        | {"clock": 1_700_000_000_123_456_789, "clock_period": 2**32 * 10**9},
        lambda: geneve_tunnel(6081, 1, True),
        {"sequence": 7, "wire_length": 1514, "timestamp": 1_700_000_000_123_456_789},
    ),
    (
        "an original longer than 16 bits can tell",
        """07 00 6558
           ffffff 00
           0164 00 06
           00000000
           ffff 00 00
           0000 00000000
           00000000 0000
           0000 0000""",
        FRAME | {"identifier": 0xFFFFFF, "original_length": 0xFFFF},
        lambda: geneve_tunnel(6081, 0xFFFFFF, True),
        {"wire_length": 150_000},
    ),
]

ACCEPTED: list[tuple[str, str, Columns]] = [
    (
        "tcpdump tests/geneve-gcp.pcap: Google, egress, bare IPv4",
        """0a 00 0800
           000000 00
           0132 01 01 800000d1
           0132 02 04 0800000d c0a86402 00000000 00000000
           0132 03 02 00000000 00001234""",
        {"kind": Kind.IPV4, "identifier": 0, "direction": OUTBOUND},
    ),
    (
        "Google, ingress, bare IPv6",
        """02 00 86dd
           000000 00
           0132 01 01 800000d0""",
        {"kind": Kind.IPV6, "identifier": 0, "direction": INBOUND},
    ),
    (
        "Amazon's load balancer: class 0x0108, three options, none of which tells us anything",
        """08 00 0800
           000000 00
           0108 01 02 0123456789abcdef
           0108 02 02 0123456789abcdef
           0108 03 01 deadbeef""",
        {"kind": Kind.IPV4, "identifier": 0},
    ),
    (
        "RFC 8926 §3.5: OVN's critical option is not ours to refuse; reserved bits are ignored",
        """02 7f 6558
           000005 ff
           0102 80 e1 00010002""",
        FRAME | {"identifier": 5},
    ),
    (
        "RFC 8926 §3.4: the longest header, 63 options without data",
        "3f 00 6558 000001 00" + "ffff 00 00" * 63,
        FRAME | {"identifier": 1},
    ),
    (
        "RFC 8926 §3.5: one option of 31 words and one of 30",
        "3f 00 6558 000001 00 ffff001f" + "a5" * 124 + "ffff001e" + "5a" * 120,
        FRAME | {"identifier": 1},
    ),
    (
        "an option of Google's class that is too short to tell",
        "01 00 6558 000001 00 0132 01 00",
        FRAME | {"identifier": 1},
    ),
    ("zeek geneve-arp.pcap: ARP without Ethernet", "00 00 0806 000001 00",
     {"kind": Kind.ARP, "identifier": 1}),
    ("RFC 8300: NSH", "00 00 894f 000001 00", {"kind": Kind.NSH, "identifier": 1}),
    ("MPLS", "00 00 8847 000001 00", {"kind": Kind.MPLS, "identifier": 1}),
]  # fmt: skip

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "00006558 000001", "geneve-short"),
    ("nothing", "", "geneve-short"),
    ("RFC 8926 §3.4: options longer than the packet", "02006558 00000100 01028001000100",
     "geneve-short"),
    ("RFC 8926 §3.4: unknown versions MUST be dropped", "40006558 00000100", "geneve-version"),
    ("RFC 8926 §3.4: version, high bit", "80006558 00000100", "geneve-version"),
    ("RFC 8926 §3.4: O is control", "00806558 00000100", "geneve-control"),
    ("RFC 8926 §3.5: an option beyond Opt Len", "01006558 00000100 01028001 00010002",
     "geneve-options"),
    ("RFC 8926 §3.5: the second option beyond Opt Len", "03006558 00000100"
     + "01020001 00010002" * 2, "geneve-options"),
    ("a protocol nobody mirrors with", "00009999 00000100", "geneve-protocol"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "octets", "columns", "tunnel", "what"), VECTORS, ids=golden.names(VECTORS)
)
def test_sends(
    source: str,
    octets: str,
    columns: Columns,
    tunnel: Callable[[], Encapsulation],
    what: dict[str, Any],
) -> None:
    assert golden.sent(tunnel(), 1, **what).hex(" ") == golden.octets(octets).hex(" ")


ROWS = [row[:3] for row in VECTORS] + ACCEPTED


@pytest.mark.parametrize(("source", "octets", "columns"), ROWS, ids=golden.names(ROWS))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(geneve.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(geneve.decode, octets, slug)
