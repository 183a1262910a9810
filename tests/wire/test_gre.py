"""GRE: RFC 2784, 2890, 1701; version 1: RFC 2637; and the peculiarities of the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import numpy as np
import pytest
from golden import FRAME, PACKET, Columns

from tunnelbridge.batch import from_packets
from tunnelbridge.wire import gre
from tunnelbridge.wire.encapsulation import Encapsulation, erspan_1, erspan_2, gre_ip, gre_teb
from tunnelbridge.wire.layer import Kind

ETHERNET: Columns = {"kind": Kind.ETHERNET, "encapsulation": Kind.GRE}
IPV4: Columns = {"kind": Kind.IPV4, "encapsulation": Kind.GRE_IP}
IPV6: Columns = {"kind": Kind.IPV6, "encapsulation": Kind.GRE_IP}

VECTORS: list[tuple[str, str, Columns, Callable[[], Encapsulation], Columns]] = [
    (
        "RFC 2784 §2 and 6558: Linux gretap",
        "0000 6558",
        ETHERNET,
        lambda: gre_teb(None, False, False),
        {},
    ),
    (
        "RFC 2890 §2, RFC 7637 §3.2: NVGRE, VSID 0xabcdef, flow 0x5a",
        """2000 6558
           abcdef5a  # key""",
        ETHERNET | {"identifier": 0xABCDEF5A},
        lambda: gre_teb(0xABCDEF5A, False, False),
        {},
    ),
    (
        "RFC 2890 §2: a sequence number wraps at 2^32",
        """1000 6558
           80c0a005  # sequence""",
        ETHERNET | {"sequence": 0x80C0A005},
        lambda: gre_teb(None, True, False),
        {"sequence": 0x180C0A005},
    ),
    (
        "RFC 2890 §2: key before sequence",
        """3000 6558
           11223344  # key
           aabbccdd  # sequence""",
        ETHERNET | {"identifier": 0x11223344, "sequence": 0xAABBCCDD},
        lambda: gre_teb(0x11223344, True, False),
        {"sequence": 0xAABBCCDD},
    ),
    (
        "RFC 2784 §2.5, RFC 2890 §2: checksum before key (the sum is from scapy)",
        """b000 6558
           f180 0000  # checksum, reserved1
           11223344   # key
           00000007   # sequence""",
        ETHERNET | {"identifier": 0x11223344, "sequence": 7},
        lambda: gre_teb(0x11223344, True, True),
        {"sequence": 7},
    ),
    (
        "RFC 2784 §2.4: IPv4",
        "0000 0800",
        IPV4,
        lambda: gre_ip(None, False, False),
        {"ethertype": 0x0800},
    ),
    (
        "RFC 7676 §3: IPv6",
        """2000 86dd
           00000001""",
        IPV6 | {"identifier": 1},
        lambda: gre_ip(1, False, False),
        {"ethertype": 0x86DD},
    ),
    (
        "tcpdump tests/erspan-type-i-1.pcap",
        "0000 88be",
        {"kind": Kind.ETHERNET, "encapsulation": Kind.ERSPAN1},
        erspan_1,
        {},
    ),
]

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("RFC 2784 §2.3: bits 6-12 are ignored", "0778 6558", ETHERNET),
    (
        "RFC 2784 §2: checksum without key; a wrong one is not looked at",
        """8000 6558
           dead 0000""",
        ETHERNET,
    ),
    (
        "RFC 1701: R brings both words, then entries up to the one of length 0",
        """4000 6558
           dead beef             # checksum and offset, both there although only R is set
           0800 0004 0a000001    # IP, offset 0, 4 octets
           0800 0408 0a000002 0a000003
           0000 0000             # the NULL entry""",
        ETHERNET,
    ),
    (
        "RFC 1701: all optional words in order, strict source route bit",
        """f800 6558
           dead 0000
           11223344
           00000009
           0000 0000""",
        ETHERNET | {"identifier": 0x11223344, "sequence": 9},
    ),
    (
        "zeek gre-pptp.pcap: version 1 with K, A; length 0x67, call 0x1780",
        """3081 880b
           0067 1780   # payload length, call
           0006 8fb1   # sequence
           0008 3a76   # acknowledgment""",
        {"kind": Kind.PPP, "encapsulation": Kind.GRE, "identifier": 0x1780, "sequence": 0x00068FB1},
    ),
    (
        "deepflow tencent-gre.pcap: version 1, an IPv4 address instead of a sequence number",
        """3001 0800
           00010285
           0a01fb10""",
        IPV4 | {"identifier": 0x00010285},
    ),
    (
        "MikroTik EoIP: length 0x2e, then the tunnel's number, little endian",
        """2001 6400
           002e 3412""",
        ETHERNET | {"identifier": 0x1234},
    ),
    (
        "VMware: the key is a direction",
        """2000 6558
           02000000""",
        ETHERNET | {"identifier": 0x02000000},
    ),
    (
        "tcpdump tests/erspan-type-ii-1.pcap: S and version 1 is ERSPAN II",
        """1000 88be
           000000ab
           1156c29a 00007ff8""",
        {
            "kind": Kind.ERSPAN2,
            "encapsulation": Kind.ERSPAN2,
            "sequence": 0xAB,
            "payload": 8,
        },
    ),
    (
        "OVS system-traffic.at: ERSPAN III in 0x88BE, from old Linux",
        """1000 88be
           00000062
           20000001 6f54b417 00008078""",
        {
            "kind": Kind.ERSPAN3,
            "encapsulation": Kind.ERSPAN3,
            "sequence": 0x62,
            "payload": 8,
        },
    ),
    (
        "tcpdump tests/erspan-type-iii-ft-0.pcap: ERSPAN III without sequence number",
        "0000 22eb",
        {"kind": Kind.ERSPAN3, "encapsulation": Kind.ERSPAN3},
    ),
    ("RFC 4023: MPLS", "0000 8847", {"kind": Kind.MPLS, "encapsulation": Kind.MPLS}),
    ("RFC 4023: MPLS, multicast", "0000 8848", {"kind": Kind.MPLS, "encapsulation": Kind.MPLS}),
    ("RFC 8300: NSH", "0000 894f", {"kind": Kind.NSH, "encapsulation": Kind.GRE}),
    (
        "SONiC on Mellanox: 22 octets, then the frame",
        "0000 8949" + "00" * 22,
        ETHERNET,
    ),
]

REJECTED: list[tuple[str, str, str]] = [
    ("half a header", "0000 65", "gre-short"),
    ("nothing", "", "gre-short"),
    ("RFC 2890: the key is cut", "2000 6558 112233", "gre-short"),
    ("RFC 2890: the sequence number is cut", "3000 6558 11223344 0000", "gre-short"),
    ("RFC 2784: the checksum is cut", "8000 6558 0000", "gre-short"),
    ("RFC 1701: an entry is cut", "4000 6558 00000000 0800 0008 0a000001", "gre-short"),
    ("RFC 2637: the acknowledgment is cut", "2081 880b 00000001 0000", "gre-short"),
    ("ERSPAN behind a cut sequence number", "1000 88be 0000", "gre-short"),
    ("SONiC: its header is cut", "0000 8949" + "00" * 21, "gre-short"),
    ("WCCP: the redirect header is cut", "0000 883e 0559 00", "gre-short"),
    ("RFC 2784 §2.3.1: version", "0002 6558" + FRAME.hex(), "gre-version"),
    ("version, before a cut ERSPAN header", "1002 88be 00000001", "gre-version"),
    ("version, before a keepalive", "0007 0000", "gre-version"),
    ("RFC 1701: entries without end", "4000 6558 00000000" + "0800 0000" * 0 + "0800 0001 00" * 9,
     "gre-routing"),
    ("a keepalive", "0000 0000", "gre-keepalive"),
    ("a protocol nobody mirrors with", "0000 9999" + FRAME.hex(), "gre-protocol"),
    ("zeek's Aruba types are 802.11", "0000 8200" + FRAME.hex(), "gre-protocol"),
    ("ERSPAN II without its header", "1000 88be 00000001", "erspan-short"),
    ("ERSPAN of version 0", "1000 88be 00000001 0156c29a 00007ff8", "erspan-version"),
    ("ERSPAN of version 3", "1000 88be 00000001 3156c29a 00007ff8", "erspan-version"),
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
    assert golden.sent(tunnel(), **what).hex(" ") == golden.octets(octets).hex(" ")


ROWS = [row[:3] for row in VECTORS] + ACCEPTED


@pytest.mark.parametrize(("source", "octets", "columns"), ROWS, ids=golden.names(ROWS))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(gre.decode, octets, columns, after=b"" if "payload" in columns else FRAME)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(gre.decode, octets, slug)


def test_wccp_redirect_header_is_told_by_the_nibble() -> None:
    # tcpdump tests/wccp_redirect_gre.pcap: 0559 0048 stands before the packet
    golden.check_reads(gre.decode, "0000 883e 0559 0048", IPV4, after=PACKET)
    golden.check_reads(gre.decode, "0000 883e", IPV4, after=PACKET)


def test_a_batch_of_plain_headers_tells_what_a_mixed_one_tells() -> None:
    plain, keyed = bytes.fromhex("0000 6558"), bytes.fromhex("2000 6558 00000005")
    batch = from_packets([plain + FRAME, keyed + FRAME, plain + FRAME])
    mixed = gre.decode(batch.memory, batch.start, batch.start + batch.length)
    alone = golden.read(gre.decode, plain + FRAME)
    for i in (0, 2):
        assert golden.told(mixed, i, int(batch.start[i])) == alone


@pytest.mark.parametrize("head", [0, 1, 18])
def test_the_checksum_covers_header_head_and_body(head: int) -> None:
    """RFC 1071's check: the sum over everything, checksum included, is all ones."""
    for length in (0, 1, 45, 46):
        clones = golden.clones(3, bytes(range(1, length + 1)))
        body = clones.batch
        if head:
            body.head = np.arange(7, 7 + 4 * head, dtype=np.uint8)
            body.head_start, body.head_length = np.array([0, head, 2 * head]), np.full(3, head)
            clones.length = body.total_length
        tunnel = gre_teb(9, True, True)
        tunnel.suffix = bytes.fromhex("020011223344")
        for i, row in enumerate(tunnel.rows(clones)):
            packet = row.tobytes() + body.octets(i)
            packet += b"\0" * (len(packet) % 2)
            total = sum(int.from_bytes(packet[j : j + 2]) for j in range(0, len(packet), 2))
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            assert total == 0xFFFF


def test_sequence_numbers_count_per_packet() -> None:
    clones = golden.clones(3)
    clones.sequence = np.array([0xFFFFFFFF, 0x100000000, 0x100000001])
    rows = erspan_2(1, 0).rows(clones)
    assert rows[:, 4:8].tolist() == [[255] * 4, [0] * 4, [0, 0, 0, 1]]
