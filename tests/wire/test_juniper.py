"""The Juniper header: tf-vrouter vr_mirror.c, contrail-controller flowtable_ksync.cc."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import pytest
from golden import Columns

from tunnelbridge.batch import INBOUND, OUTBOUND
from tunnelbridge.wire import juniper
from tunnelbridge.wire.encapsulation import Encapsulation, juniper_tunnel
from tunnelbridge.wire.layer import Kind

FRAME: Columns = {"kind": Kind.ETHERNET}
IN: Columns = FRAME | {"direction": INBOUND}
OUT: Columns = FRAME | {"direction": OUTBOUND}

VECTORS: list[tuple[str, str, Columns, Callable[[], Encapsulation], Columns]] = [
    (
        "flowtable_ksync.cc SetPcapData: host, PASS and MIRROR, ingress, both networks",
        """01 04 0a000002
           02 04 400000a0
           03 05 613a623a63   # a:b:c
           04 05 613a623a64   # a:b:d
           ff 00""",
        IN,
        lambda: juniper_tunnel(8099, bytes([10, 0, 0, 2]), "a:b:c", "a:b:d"),
        {"direction": INBOUND},
    ),
    (
        "the same of a packet sent",
        """01 04 0a000002
           02 04 000000a0
           03 05 613a623a63
           04 05 613a623a64
           ff 00""",
        OUT,
        lambda: juniper_tunnel(8099, bytes([10, 0, 0, 2]), "a:b:c", "a:b:d"),
        {"direction": OUTBOUND},
    ),
    (
        "IPv6 underlay: no host; names that end in a zero octet's neighbour keep their length",
        """02 04 400000a0
           04 03 616263
           ff 00""",
        IN,
        lambda: juniper_tunnel(8099, None, "", "abc"),
        {"direction": INBOUND},
    ),
    (
        "the longest name",
        "02 04 000000a0 03 ff" + "78" * 255 + "ff 00",
        OUT,
        lambda: juniper_tunnel(8099, None, "x" * 255, ""),
        {"direction": OUTBOUND},
    ),
]

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("vr_mirror.c default_mme: nothing is known", "ff 00", FRAME),
    ("interface_ksync.cc: only the source network, so received", "03 05 613a623a63 ff 00", IN),
    ("interface_ksync.cc: only the destination network, so sent", "04 05 613a623a63 ff 00", OUT),
    ("both networks and no action do not tell", "03 01 61 04 01 62 ff 00", FRAME),
    ("the action wins over a single name", "04 01 61 02 04 400000a0 ff 00", IN),
    ("documents say two octets of action; nobody sends them", "02 02 4000 ff 00", FRAME),
    ("unknown types are passed by their length", "63 03 ffffff 00 00 ff 00", FRAME),
    ("an IPv6 host", "01 10" + "20" * 16 + "ff 00", FRAME),
    ("an end with a value", "ff 02 0102", FRAME),
    (
        "before R3.1.1: a pcap record of 2016 in front, as long as what follows",
        """57c82d1e 0006ddd0 00000037 00000037   # 9 octets of TLVs and the frame of 46
           03 05 613a623a63 ff 00""",
        IN | {"clock": 0x57C82D1E * 10**9 + 0x6DDD0 * 1000, "clock_period": 2**32 * 10**9},
    ),
]

REJECTED: list[tuple[str, str, str]] = [
    ("nothing", "", "juniper-tlvs"),
    ("half a TLV", "ff", "juniper-tlvs"),
    ("a value beyond the datagram", "03 05 613a623a", "juniper-tlvs"),
    ("TLVs without end", "03 01 61", "juniper-tlvs"),
    ("more TLVs than anybody sends", "63 00" * 16 + "ff 00", "juniper-tlvs"),
    ("a pcap record whose length does not fit", "57c82d1e 0006ddd0 00000010 00000010 03 05 613a",
     "juniper-tlvs"),
    ("a pcap record and nothing", "57c82d1e 0006ddd0 00000000 00000000", "juniper-tlvs"),
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
    golden.check_reads(juniper.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(juniper.decode, octets, slug)
