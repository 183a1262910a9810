"""IPv6 and extension headers: RFC 8200, 6946, 2473, 4302."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from golden import Columns

from tunnelbridge.batch import from_packets
from tunnelbridge.wire import ipv6
from tunnelbridge.wire.layer import Kind

ADDRESSES = " 20010db8000000000000000000000001 20010db8000000000000000000000002 "
BODY = bytes(16)


def header(next_header: int, length: int, first: str = "6abcdef0") -> str:
    """Return a base header."""
    return f"{first} {length:04x} {next_header:02x} 40" + ADDRESSES


ACCEPTED: list[tuple[str, str, Columns]] = [
    ("RFC 8200 §3", header(47, 16), {"kind": Kind.GRE, "claimed_end": 56}),
    ("OVS system-traffic.at: Linux' encapsulation limit in front of GRE",
     header(60, 24, "60000000") + "2f 00 04 01 04 01 01 00",
     {"kind": Kind.GRE, "claimed_end": 64}),
    ("RFC 8200 §4: every header, in any order",
     header(43, 16 + 8 + 16 + 24 + 8, "60000000")
     + "00 00 000000000000"                                     # routing, 8
     + "33 01 000000000000 0000000000000000"                    # hop-by-hop, 16
     + "3c 04 0000 00000001 00000001 000000000000000000000000"  # authentication, (4 + 2) * 4
     + "11 00 010400000000",                                    # destination options, 8
     {"kind": Kind.UDP, "claimed_end": 112}),
    ("RFC 6946: an atomic fragment is whole; reserved bits do not count",
     header(44, 24) + "11 ff 0006 12345678", {"kind": Kind.UDP, "claimed_end": 64}),
    ("Ethernet pads: Payload Length ends it", header(17, 9),
     {"kind": Kind.UDP, "claimed_end": 49, "end": 49}),
    ("cut on its way: Payload Length tells", header(17, 1460), {"kind": Kind.UDP, "claimed_end": 1500}),
    ("RFC 2675, Linux BIG TCP: no Payload Length", header(6, 0),
     {"kind": Kind.NONE, "claimed_end": 56}),
    ("eight headers", header(60, 80) + "3c00000000000000" * 7 + "6100000000000000",
     {"kind": Kind.ETHERIP, "claimed_end": 120}),
    ("no next header", header(59, 16), {"kind": Kind.NONE, "claimed_end": 56}),
    ("ESP ends the walk", header(50, 16), {"kind": Kind.NONE, "claimed_end": 56}),
    *(
        (f"IANA: next header {number}", header(number, 16), {"kind": kind, "claimed_end": 56})
        for number, kind in (
            (4, Kind.IPV4), (17, Kind.UDP), (41, Kind.IPV6), (58, Kind.ICMP), (97, Kind.ETHERIP),
            (137, Kind.MPLS), (143, Kind.ETHERNET),
        )
    ),
]  # fmt: skip

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", header(17, 16)[:-3], "ip-short"),
    ("nothing", "", "ip-short"),
    ("version 4", header(17, 16, "40000000") + "00" * 16, "ip-version"),
    ("an extension header is not there", header(60, 0), "ip-short"),
    ("an extension header is cut", header(60, 0) + "2f 00 04 01 04 01 01", "ip-short"),
    ("an extension header is longer than the packet", header(60, 8) + "2f 01 04 01 04 01 01 00",
     "ip-short"),
    ("an extension header beyond Payload Length", header(60, 7) + "2f 00 04 01 04 01 01 00",
     "ip-short"),
    ("RFC 4302 §2.2: authentication beyond the packet", header(51, 8) + "2f 01 0000 00000000",
     "ip-short"),
    ("RFC 8200 §4.5: the first fragment", header(44, 24) + "2f 00 0001 12345678" + "00" * 16,
     "ip-fragment"),
    ("RFC 8200 §4.5: the last, offset 8", header(44, 24) + "2f 00 0008 12345678" + "00" * 16,
     "ip-fragment"),
    ("RFC 8200 §4.5: the largest offset", header(44, 24) + "2f 00 8000 12345678" + "00" * 16,
     "ip-fragment"),
    ("more headers than anybody sends", header(60, 72) + "3c00000000000000" * 9,
     "ip-extensions"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(ipv6.decode, octets, columns, after=BODY)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(ipv6.decode, octets, slug)


def test_fragments_are_told_by_their_identification() -> None:
    fragments = ["0001", "0009", "0008", "0000"]
    rows = [header(44, 24) + f"2f 00 {field} 12345678" for field in fragments]
    rows.append(header(60, 32) + "2c 00 010400000000 2f 00 0001 12345679")  # options before it
    batch = from_packets([golden.octets(row) + BODY for row in rows])
    found = ipv6.decode(batch.memory, batch.start, batch.start + batch.length)
    assert found.fragment is not None
    assert found.first_fragment is not None
    assert found.fragment.tolist() == [0x12345678] * 3 + [-1, 0x12345679]
    assert found.first_fragment.tolist() == [True, False, False, False, True]
    assert (found.kind == Kind.GRE).all()
    assert (found.payload - batch.start).tolist() == [48, 48, 48, 48, 56]


def test_the_batch_s_own_next_headers_stay() -> None:
    memory = np.frombuffer(golden.octets(header(60, 24) + "2f 00 04 01 04 01 01 00") + BODY, "u1")
    before = memory.tobytes()
    for _ in range(2):
        found = ipv6.decode(memory, np.array([0]), np.array([memory.size]))
        assert found.kind.tolist() == [Kind.GRE]
    assert memory.tobytes() == before
