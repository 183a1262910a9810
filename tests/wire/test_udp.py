"""UDP: RFC 768; source ports RFC 7348 §5, RFC 8926 §3.3."""

from __future__ import annotations

import golden
import pytest
from golden import Columns

from tunnelbridge.wire import udp
from tunnelbridge.wire.encapsulation import vxlan_tunnel
from tunnelbridge.wire.layer import Kind

PORTS = udp.port_table(udp.PORTS)
BODY = bytes(24)

ACCEPTED: list[tuple[str, str, Columns]] = [
    ("tcpdump tests/mpls-over-udp.pcap, shortened", "e54b 19eb 0020 0000", {"kind": Kind.MPLS}),
    ("padding behind Length", "c000 12b5 001f 0000", {"kind": Kind.VXLAN, "end": 31}),
    ("RFC 768: just a header", "c000 12b5 0008 0000", {"kind": Kind.VXLAN, "end": 8}),
    ("offload: Length beyond the datagram", "c000 12b5 0021 0000", {"kind": Kind.VXLAN}),
    ("offload: no Length", "c000 12b5 0000 0000", {"kind": Kind.VXLAN}),
    ("a Length under the header's own", "c000 12b5 0007 0000", {"kind": Kind.VXLAN}),
    ("a wrong checksum", "c000 12b5 0020 dead", {"kind": Kind.VXLAN}),
    ("only the destination counts", "12b5 0035 0020 0000", {"kind": Kind.NONE}),
    *(
        (f"port {port}", f"0001 {port:04x} 0020 0000", {"kind": kind})
        for port, kind in (
            (4789, Kind.VXLAN), (8472, Kind.VXLAN), (4790, Kind.VXLAN_GPE), (6081, Kind.GENEVE),
            (37008, Kind.TZSP), (8099, Kind.JUNIPER), (6635, Kind.MPLS), (4754, Kind.GRE),
            (0, Kind.NONE), (65535, Kind.NONE),
        )
    ),
]  # fmt: skip

REJECTED: list[tuple[str, str, str]] = [
    ("one octet short", "c000 12b5 0008 00", "udp-short"),
    ("nothing", "", "udp-short"),
]


@pytest.mark.parametrize(("source", "octets", "columns"), ACCEPTED, ids=golden.names(ACCEPTED))
def test_reads(source: str, octets: str, columns: Columns) -> None:
    golden.check_reads(udp.decode, octets, columns, PORTS, after=BODY)


@pytest.mark.parametrize(("source", "octets", "slug"), REJECTED, ids=golden.names(REJECTED))
def test_rejects(source: str, octets: str, slug: str) -> None:
    golden.check_rejects(udp.decode, octets, slug, PORTS)


def test_a_port_that_was_configured() -> None:
    table = udp.port_table({51234: Kind.MPLS})
    found = golden.read(udp.decode, golden.octets("0001 c822 0008 0000"), table)
    assert found["kind"] == Kind.MPLS
    found = golden.read(udp.decode, golden.octets("0001 12b5 0008 0000"), table)
    assert found["kind"] == Kind.NONE


@pytest.mark.parametrize(
    ("entropy", "port"), [(0, 49152), (1, 49153), (16383, 65535), (16384, 49152), (65535, 65535)]
)
def test_source_port_length_and_checksum(entropy: int, port: int) -> None:
    # 8 octets of UDP, 8 of VXLAN, 46 of frame
    header = golden.sent(vxlan_tunnel(4789, 1), 0, entropy=entropy)
    assert header.hex(" ") == f"{port >> 8:02x} {port & 255:02x} 12 b5 00 3e 00 00"


def test_length_counts_octets_that_replace_the_frame_s_first() -> None:
    tunnel = vxlan_tunnel(4789, 1)
    tunnel.suffix = bytes(6)
    assert golden.sent(tunnel, 0, frame=bytes(100))[4:6].hex() == f"{8 + 8 + 6 + 100:04x}"
