"""ERSPAN type II: draft-foschiano-erspan-03 §4.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import erspan2
from tunnelbridge.wire.encapsulation import Encapsulation, erspan_2
from tunnelbridge.wire.layer import Kind

FRAME: Columns = {"kind": Kind.ETHERNET}

VECTORS: list[tuple[str, str, Columns, Callable[[], Encapsulation], Columns]] = [
    (
        "scapy: ERSPAN_II(vlan=0x2aa, cos=5, en=3, t=1, session_id=0x155, index=0xabcde)",
        """12aa bd55   # Ver 1, VLAN 0x2aa; COS 5, En 3, T 1, session 0x155
           000abcde   # index""",
        FRAME | {"identifier": 0x155, "truncated": True},
        lambda: erspan_2(0x155, 0xABCDE),
        {"tag": 0x8100_A2AA, "truncated": True},
    ),
    (
        "linux erspan.h: no tag, so En 0; the largest session and index",
        """1000 03ff
           000fffff""",
        FRAME | {"identifier": 0x3FF},
        lambda: erspan_2(0x3FF, 0xFFFFF),
        {},
    ),
    (
        "IEEE 802.1Q: a priority tag is a tag although its VLAN is 0; DEI has no place",
        """1000 f801   # COS 7, En 3
           00000000""",
        FRAME | {"identifier": 1},
        lambda: erspan_2(1, 0),
        {"tag": 0x8100_F000},
    ),
    (
        "IEEE 802.1ad: the outer tag",
        """1fff 5802
           00000001""",
        FRAME | {"identifier": 2},
        lambda: erspan_2(2, 1),
        {"tag": 0x88A8_4FFF},
    ),
]

ACCEPTED: list[tuple[str, str, Columns]] = [
    (
        "tcpdump tests/erspan-type-ii-1.pcap: COS 6, session 666",
        """1156 c29a
           00007ff8""",
        FRAME | {"identifier": 666},
    ),
    (
        "tcpdump tests/erspan-type-ii-3.pcap: En 2, the tag was removed",
        """1001 1065
           0000abc5""",
        FRAME | {"identifier": 0x65, "tag": 0x8100_0001},
    ),
    (
        "§4.2: COS and VLAN of a removed tag, all bits",
        """1555 b2aa   # VLAN 0x555; COS 5, En 2, T 0, session 0x2aa
           00000000""",
        FRAME | {"identifier": 0x2AA, "tag": 0x8100_A555},
    ),
    (
        "gopacket layers/erspan2_test.go: reserved bits 0x155; En 2, T 1",
        """12aa 96aa
           155f0f0f""",
        FRAME | {"identifier": 0x2AA, "tag": 0x8100_82AA, "truncated": True},
    ),
    (
        "tcpdump tests/erspan-type-ii-2.pcap: En 1 says ISL, the frame is Ethernet",
        """1064 0801
           00000000""",
        FRAME | {"identifier": 1},
    ),
]

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "12aa bd55 000abc", "erspan-short"),
    ("nothing", "", "erspan-short"),
    ("§4.3: version 2 is type III", "22aa bd55 000abcde", "erspan-version"),
    ("version 0", "02aa bd55 000abcde", "erspan-version"),
]


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
    golden.check_reads(erspan2.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(erspan2.decode, octets, slug)
