"""NSH: RFC 8300 §2.2."""

from __future__ import annotations

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import nsh
from tunnelbridge.wire.layer import Kind

ACCEPTED: list[tuple[str, str, Columns]] = [
    (
        "tcpdump tests/nsh-over-vxlan-gpe.pcap: 6 words, type 2, IPv4 (its Length covers metadata)",
        """3006 02 01
           ffffff ff
           0001 02 01 12345678
           0002 03 01 12345678""",
        {"kind": Kind.IPV4},
    ),
    ("RFC 8300 §2.4: type 1, 6 words, Ethernet", "0fc6 01 03 a5c30f ff" + "5a" * 16,
     {"kind": Kind.ETHERNET}),
    ("RFC 8300 §2.2: no metadata, IPv6", "0002 02 02 000001 ff", {"kind": Kind.IPV6}),
    ("RFC 8300 §2.2: MPLS", "0002 02 05 000001 ff", {"kind": Kind.MPLS}),
    ("RFC 8300 §2.2: the longest, unassigned bits", "3fff f2 03 000001 ff" + "ff" * 244,
     {"kind": Kind.ETHERNET}),
]  # fmt: skip

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "0002 0203 000001", "nsh-short"),
    ("nothing", "", "nsh-short"),
    ("RFC 8300 §2.2: Length under the header's own", "0001 0203 000001ff", "nsh-short"),
    ("RFC 8300 §2.2: Length beyond the packet", "0003 0203 000001ff 000000", "nsh-short"),
    ("RFC 8300 §2.2: version", "4002 0203 000001ff", "nsh-version"),
    ("RFC 8300 §2.2: version, high bit", "8002 0203 000001ff", "nsh-version"),
    ("NSH in NSH", "0002 0204 000001ff", "nsh-protocol"),
]


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(nsh.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(nsh.decode, octets, slug)
