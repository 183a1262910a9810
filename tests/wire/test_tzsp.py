"""TZSP: Wireshark packet-tzsp.c, tzsp2pcap.c, scapy.contrib.tzsp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import tzsp
from tunnelbridge.wire.encapsulation import Encapsulation, tzsp_tunnel
from tunnelbridge.wire.layer import Kind

FRAME: Columns = {"kind": Kind.ETHERNET}

VECTORS: list[tuple[str, str, Columns, Callable[[], Encapsulation], Columns]] = [
    ("MikroTik sniffer: received, Ethernet, END", "01 00 0001 01", FRAME,
     lambda: tzsp_tunnel(37008, False), {}),
    (
        "packet-tzsp.c: tag 41, two octets",
        """01 00 0001
           29 02 05dc   # original length 1500
           01           # END""",
        FRAME | {"original_length": 1500},
        lambda: tzsp_tunnel(37008, True),
        {"wire_length": 1500},
    ),
    (
        "an original longer than 16 bits can tell",
        "01 00 0001 29 02 ffff 01",
        FRAME | {"original_length": 0xFFFF},
        lambda: tzsp_tunnel(37008, True),
        {"wire_length": 65536},
    ),
]  # fmt: skip

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("RSniffer: type 1 with PAD and END (tzsp2pcap issue 4)", "01 01 0001 00 01", FRAME),
    (
        "facts of packet-tzsp.c: original length, sensor MAC, PAD, END",
        """01 00 0001
           29 02 05dc
           3c 06 001122334455
           00 01""",
        FRAME | {"original_length": 1500},
    ),
    ("an unknown tag is passed by its length", "01 00 0001 fe 03 010101 01", FRAME),
    ("an empty tag", "01 00 0001 fe 00 01", FRAME),
    ("tag 41 of another size does not tell", "01 00 0001 29 04 000005dc 01", FRAME),
    ("the longest tag", "01 00 0001 50 ff" + "01" * 255 + "01", FRAME),
]

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "010000", "tzsp-short"),
    ("nothing", "", "tzsp-short"),
    ("version", "0200000101", "tzsp-version"),
    ("a keepalive has neither tags nor frame", "01040000", "tzsp-keepalive"),
    ("a keepalive with an end", "0104000001", "tzsp-keepalive"),
    ("type 2 is reserved", "0102000101", "tzsp-type"),
    ("type 3 is configuration", "0103000101", "tzsp-type"),
    ("type 5 opens a port", "0105000101", "tzsp-type"),
    ("802.11", "0100001201", "tzsp-protocol"),
    ("Prism", "0100007701", "tzsp-protocol"),
    ("AVS", "0100007f01", "tzsp-protocol"),
    ("no tags at all", "01000001", "tzsp-tags"),
    ("PAD without END", "01000001000000", "tzsp-tags"),
    ("a tag without length", "0100000129", "tzsp-tags"),
    ("a tag beyond the datagram", "01000001290205", "tzsp-tags"),
    ("tags without end", "01000001" + "00" * 1400 + "01", "tzsp-tags"),
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
    golden.check_reads(tzsp.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(tzsp.decode, octets, slug)
