"""ICMP and ICMPv6 errors: RFC 792, RFC 4443."""

from __future__ import annotations

import golden
import pytest
from golden import PACKET, Columns

from tunnelbridge.wire import icmp
from tunnelbridge.wire.layer import Kind

QUOTED: Columns = {"kind": Kind.IPV4}
NOTHING: Columns = {"kind": Kind.NONE}

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("RFC 792: destination unreachable", "03 03 0000 00000000", QUOTED),
    ("RFC 1191: fragmentation needed, MTU 1450", "03 04 0000 000005aa", QUOTED),
    ("RFC 792: source quench", "04 00 0000 00000000", QUOTED),
    ("RFC 792: redirect", "05 01 0000 c0000201", QUOTED),
    ("RFC 792: time exceeded", "0b 00 0000 00000000", QUOTED),
    ("RFC 792: parameter problem", "0c 00 0000 14000000", QUOTED),
    ("RFC 4443: unreachable", "01 04 0000 00000000", QUOTED),
    ("RFC 4443: packet too big", "02 00 0000 00000500", QUOTED),
    ("RFC 792: an echo quotes nothing", "08 00 0000 00000000", NOTHING),
    ("RFC 4443: nor does its", "80 00 0000 00000000", NOTHING),
    ("RFC 4861: nor a neighbour solicitation", "87 00 0000 00000000", NOTHING),
]

REJECTED: list[tuple[str, str, str]] = [
    ("nothing", "", "ip-short"),
    ("a header without quote", "03 03 0000 00000000", "ip-short"),
]


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(icmp.decode, octets, columns, after=PACKET)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(icmp.decode, octets, slug)


@pytest.mark.parametrize(
    ("first", "kind"), [("60", Kind.IPV6), ("45", Kind.IPV4), ("50", Kind.NONE)]
)
def test_the_quote_s_own_version_counts(first: str, kind: Kind) -> None:
    golden.check_reads(
        icmp.decode, "01 00 0000 00000000", {"kind": kind}, after=golden.octets(first)
    )
