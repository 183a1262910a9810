"""PPP in GRE: RFC 1661 §2, RFC 1331 §3.1, RFC 2637."""

from __future__ import annotations

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import ppp
from tunnelbridge.wire.layer import Kind

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("zeek gre-pptp.pcap: FF 03, IPv4", "ff03 0021", {"kind": Kind.IPV4}),
    ("RFC 1661 §6.6: address and control compressed", "0021", {"kind": Kind.IPV4}),
    ("RFC 1661 §6.5: protocol compressed", "21", {"kind": Kind.IPV4}),
    ("both", "ff03 21", {"kind": Kind.IPV4}),
    ("RFC 5072: IPv6", "ff03 0057", {"kind": Kind.IPV6}),
    ("RFC 5072: IPv6, compressed", "57", {"kind": Kind.IPV6}),
]

REJECTED: list[tuple[str, str, str]] = [
    ("nothing", "", "ppp-short"),
    ("half a protocol, uncompressed", "00", "ppp-short"),
    ("an address alone is a protocol we do not know", "ff", "ppp-protocol"),
    ("address and control alone", "ff03", "ppp-short"),
    ("half a protocol", "ff0300", "ppp-short"),
    ("LCP", "ff03c021 01", "ppp-protocol"),
    ("compressed (CCP's 00fd)", "00fd 01", "ppp-protocol"),
    ("compressed, one octet", "fd 01", "ppp-protocol"),
]


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(ppp.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(ppp.decode, octets, slug)
