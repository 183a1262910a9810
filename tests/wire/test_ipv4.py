"""IPv4: RFC 791 §3.1, RFC 6864."""

from __future__ import annotations

import golden
import pytest
from golden import PACKET, Columns

from tunnelbridge.batch import from_packets
from tunnelbridge.wire import ipv4
from tunnelbridge.wire.layer import Kind

ADDRESSES = " c0000201 c6336402"


def header(protocol: int, fragment: str = "4000", first: str = "4500 0030") -> str:
    """Return a header with 28 octets to follow."""
    return f"{first} abcd {fragment} 40 {protocol:02x} 0000 {ADDRESSES}"


BODY = bytes(28)

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("tcpdump tests/nsh-over-vxlan-gpe.pcap", PACKET[:20].hex() + "00" * 12,
     {"kind": Kind.UDP, "payload": 20, "claimed_end": 32, "end": 32}),
    ("RFC 791 §3.1: options, IHL 15", header(47, first="4f00 0058") + "01" * 40,
     {"kind": Kind.GRE, "claimed_end": 88}),
    ("Ethernet pads: Total Length ends it", header(6, first="4500 0020"),
     {"kind": Kind.NONE, "end": 32, "claimed_end": 32}),
    ("cut on its way: Total Length tells", header(17, first="4500 05dc"),
     {"kind": Kind.UDP, "claimed_end": 1500}),
    ("Linux BIG TCP: no Total Length", header(6, first="4500 0000"),
     {"kind": Kind.NONE, "claimed_end": 48}),
    ("RFC 791: DF and the reserved bit are no fragments", header(47, "c000"),
     {"kind": Kind.GRE, "claimed_end": 48}),
    *(
        (f"IANA: protocol {number}", header(number), {"kind": kind, "claimed_end": 48})
        for number, kind in (
            (1, Kind.ICMP), (4, Kind.IPV4), (17, Kind.UDP), (41, Kind.IPV6), (47, Kind.GRE),
            (97, Kind.ETHERIP), (137, Kind.MPLS), (143, Kind.ETHERNET), (6, Kind.NONE),
            (50, Kind.NONE), (115, Kind.NONE),
        )
    ),
]  # fmt: skip

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", PACKET[:19].hex(), "ip-short"),
    ("nothing", "", "ip-short"),
    ("version 6", header(17, first="6500 0030"), "ip-version"),
    ("version 0", header(17, first="0500 0030"), "ip-version"),
    ("RFC 791 §3.1: IHL is at least 5", header(17, first="4400 0030") + "00" * 28, "ip-short"),
    ("options beyond the packet", header(17, first="4f00 0058") + "00" * 39, "ip-short"),
    ("Total Length under the header's own", header(17, first="4500 0013") + "00" * 28, "ip-short"),
    ("RFC 791 §2.3: the first fragment", header(47, "2000") + "00" * 28, "ip-fragment"),
    ("RFC 791 §2.3: one between", header(47, "2001") + "00" * 28, "ip-fragment"),
    ("RFC 791 §2.3: the last, its offset in the highest bit", header(47, "1000") + "00" * 28,
     "ip-fragment"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    after = b"" if "payload" in columns else BODY
    golden.check_reads(ipv4.decode, octets, columns, after=after)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(ipv4.decode, octets, slug)


def test_fragments_are_told_by_their_identification() -> None:
    rows = [header(47, fragment) for fragment in ("2000", "2001", "0001", "4000", "3fff")]
    batch = from_packets([golden.octets(row) + BODY for row in rows])
    found = ipv4.decode(batch.memory, batch.start, batch.start + batch.length)
    assert found.fragment is not None
    assert found.first_fragment is not None
    assert found.fragment.tolist() == [0xABCD, 0xABCD, 0xABCD, -1, 0xABCD]
    assert found.first_fragment.tolist() == [True, False, False, False, False]
    assert (found.kind == Kind.GRE).all()


def test_a_batch_without_fragments_has_no_fragment_columns() -> None:
    batch = from_packets([PACKET])
    found = ipv4.decode(batch.memory, batch.start, batch.start + batch.length)
    assert found.fragment is None
    assert found.first_fragment is None
