"""VXLAN: RFC 7348 §5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import vxlan
from tunnelbridge.wire.encapsulation import Encapsulation, vxlan_tunnel
from tunnelbridge.wire.layer import Kind

FRAME: Columns = {"kind": Kind.ETHERNET}

VECTORS: list[tuple[str, str, Columns, Callable[[], Encapsulation], Columns]] = [
    (
        "tcpdump tests/vxlan_port_8472.pcap: VNI 100",
        """08 000000
           000064 00""",
        FRAME | {"identifier": 100},
        lambda: vxlan_tunnel(8472, 100),
        {},
    ),
    (
        "RFC 7348 §5: 24 bits, none alike",
        """08 000000
           a5c30f 00""",
        FRAME | {"identifier": 0xA5C30F},
        lambda: vxlan_tunnel(4789, 0xA5C30F),
        {},
    ),
]

ACCEPTED: list[tuple[str, str, Columns]] = [
    (
        "draft-smith-vxlan-group-policy: G, D, A and a group (PcapPlusPlus Vxlan1.pcap: 8848)",
        """88 48 1234
           00ffff 00""",
        FRAME | {"identifier": 0xFFFF},
    ),
    (
        "suricata-verify vxlan-non-zero-reserved-fields: all reserved bits",
        """ff ffffff
           000001 ff""",
        FRAME | {"identifier": 1},
    ),
]

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "08000000 000064", "vxlan-short"),
    ("nothing", "", "vxlan-short"),
    ("RFC 7348 §5: I MUST be set", "f7ffffff 000064ff", "vxlan-no-vni"),
    ("I, but in the last octet", "00000008 000064ff", "vxlan-no-vni"),
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
    golden.check_reads(vxlan.decode, octets, columns)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(vxlan.decode, octets, slug)
