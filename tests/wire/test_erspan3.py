"""ERSPAN type III: draft-foschiano-erspan-03 §4.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import pytest
from golden import Columns

from tunnelbridge.batch import INBOUND, OUTBOUND
from tunnelbridge.wire import erspan3
from tunnelbridge.wire.encapsulation import Encapsulation, erspan_3
from tunnelbridge.wire.layer import Kind

FRAME: Columns = {"kind": Kind.ETHERNET, "direction": INBOUND}
EGRESS: Columns = FRAME | {"direction": OUTBOUND}
NOW = 1_700_000_000_123_456_789


def clock(count: int, unit: int) -> Columns:
    """Return what a 32-bit timestamp tells, counted in ``unit`` nanoseconds."""
    return {"clock": count * unit, "clock_period": 2**32 * unit}


BY_100_US, BY_100_NS, BY_1_NS = 100_000, 100, 1

VECTORS: list[tuple[str, str, Columns, Callable[[], Encapsulation], Columns]] = [
    (
        "OVS system-traffic.at: session 1, P 1, HwID 7, D 1, Gra 0, its time in 100 µs",
        """2000 0001
           6f54b417
           0000 8078""",
        EGRESS | {"identifier": 1} | clock(0x6F54B417, BY_100_US),
        lambda: erspan_3(1, 7, "100us"),
        {"timestamp": 0x6F54B417 * 100_000 + 99_999, "direction": OUTBOUND},
    ),
    (
        "§4.3: VLAN, COS, T, session, HwID 0x2a, 100 ns; BSO stays 0 with a tag",
        """22aa a555   # Ver 2, VLAN 0x2aa; COS 5, BSO 0, T 1, session 0x155
           f1415687   # 1700000000.1234567 s in 100 ns, low 32 bits
           0000 82a2  # SGT; P 1, FT 0, HwID 0x2a, D 0, Gra 1, O 0""",
        FRAME | {"identifier": 0x155, "truncated": True} | clock(0xF1415687, BY_100_NS),
        lambda: erspan_3(0x155, 0x2A, "100ns"),
        {"tag": 0x8100_A2AA, "truncated": True, "timestamp": NOW},
    ),
    (
        "§4.3, platform 5: seconds 0x6553f100 and nanoseconds 0x075bcd15",
        """2000 03ff
           075bcd15       # 123456789 ns
           0000 83fd      # P 1, FT 0, HwID 0x3f, D 1, Gra 2, O 1
           1400 0000      # platform 5, switch 0; port 0
           6553f100       # 1700000000 s""",
        EGRESS | {"identifier": 0x3FF, "clock": NOW, "clock_period": 2**32 * 10**9},
        lambda: erspan_3(0x3FF, 0x3F, "1588"),
        {"timestamp": NOW, "direction": OUTBOUND},
    ),
]

ACCEPTED: list[tuple[str, str, Columns]] = [
    (
        "tcpdump tests/erspan-type-iii-ft-0.pcap: P 0 although Ethernet, Gra 3",
        """2014 0000
           a3595bff
           0000 0006""",
        FRAME | {"identifier": 0},
    ),
    (
        "zeek gre-erspan3-dot1q.pcap: platform sub-header 3",
        """200a 0000
           70507e55
           0000 0007
           0c000003 15f742e8""",
        FRAME | {"identifier": 0},
    ),
    (
        "§4.3: BSO 3 (a bad frame), SGT",
        """2001 1865
           00000001
           abcd 8000""",
        FRAME | {"identifier": 0x65} | clock(1, BY_100_US),
    ),
    (
        "tcpdump tests/erspan-type-iii-ft-7.pcap: FT 7, the sub-header is not announced",
        """2001 1865
           00000001
           0000 1e00
           0000abc5 00004b87""",
        FRAME | {"identifier": 0x65} | clock(1, BY_100_US),
    ),
    (
        "wire §2: Gra 2 without the seconds is a count of nanoseconds",
        """2000 0001
           f1415687
           0000 8004""",
        FRAME | {"identifier": 1} | clock(0xF1415687, BY_1_NS),
    ),
    (
        "platform 6 tells seconds too",
        """2000 0001
           075bcd15
           0000 8005
           1800 0000
           6553f100""",
        FRAME | {"identifier": 1, "clock": NOW, "clock_period": 2**32 * 10**9},
    ),
    (
        "platform 3 has the upper half there: no seconds",
        """2000 0001
           075bcd15
           0000 8005
           0c00 0000
           6553f100""",
        FRAME | {"identifier": 1} | clock(0x075BCD15, BY_1_NS),
    ),
    (
        "platform 5 with 100 ns: no seconds either",
        """2000 0001
           075bcd15
           0000 8003
           1400 0000
           6553f100""",
        FRAME | {"identifier": 1} | clock(0x075BCD15, BY_100_NS),
    ),
    (
        "FT 7 without a sub-header",
        """2001 1865
           00000001
           0000 1e00""",
        FRAME | {"identifier": 0x65} | clock(1, BY_100_US),
    ),
]

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "2000 0001 6f54b417 0000 80", "erspan-short"),
    ("§4.3: the announced sub-header is cut", "200a 0000 70507e55 0000 0007 0c000003 15f742",
     "erspan-short"),
    ("§4.2: version 1 is type II", "1000 0001 6f54b417 0000 8078", "erspan-version"),
    ("version 3", "3000 0001 6f54b417 0000 8078", "erspan-version"),
    ("FT 7 and nothing like a frame at either place", "2001 1865 00000001 0000 1e00" + "ff" * 40,
     "erspan-frame-type"),
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
    golden.check_reads(erspan3.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(erspan3.decode, octets, slug)


@pytest.mark.parametrize(
    ("packet", "kind"), [(golden.PACKET, Kind.IPV4), (bytes([0x60]) + bytes(39), Kind.IPV6)]
)
def test_frame_type_2_is_a_bare_packet(packet: bytes, kind: Kind) -> None:
    columns = FRAME | {"identifier": 5, "kind": kind} | clock(1, BY_100_US)
    golden.check_reads(erspan3.decode, "2000 0005 00000001 0000 0800", columns, after=packet)


@pytest.mark.parametrize("sub_header", ["", "0000abc5 00004b87"])
@pytest.mark.parametrize(
    "frame",
    [
        "02000000 0010" + golden.FRAME.hex()[12:],  # octets 4 and 5 look like an LLC length of 16
        "0180c2000000 0019 69df dc01 0007 424203" + "00" * 43,  # STP, padded to 60 octets
    ],
)
def test_unannounced_sub_header_and_a_misleading_frame(frame: str, sub_header: str) -> None:
    octets = "2001 1865 00000001 0000 1e00" + sub_header
    columns = FRAME | {"identifier": 0x65} | clock(1, BY_100_US)
    golden.check_reads(erspan3.decode, octets, columns, after=bytes.fromhex(frame))


@pytest.mark.parametrize(("granularity", "unit"), [("100us", 100_000), ("100ns", 100)])
def test_times_wrap_at_32_bits(granularity: str, unit: int) -> None:
    tunnel = erspan_3(1, 0, granularity)
    octets = golden.sent(tunnel, 1, timestamp=(0x7_00000003) * unit)
    assert octets[4:8].hex() == "00000003"
