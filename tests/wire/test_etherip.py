"""EtherIP: RFC 3378 §3."""

from __future__ import annotations

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import etherip
from tunnelbridge.wire.layer import Kind

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("RFC 3378 §3: version 3", "3000", {"kind": Kind.ETHERNET}),
    ("RFC 3378 §3: reserved bits", "3fff", {"kind": Kind.ETHERNET}),
]

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "30", "etherip-short"),
    ("nothing", "", "etherip-short"),
    ("RFC 3378 §3: MUST be discarded", "2000", "etherip-version"),
    ("OpenBSD's old mistake, the nibbles swapped", "0300", "etherip-version"),
]


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(etherip.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(etherip.decode, octets, slug)
