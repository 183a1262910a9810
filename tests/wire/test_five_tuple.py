"""The fields rules look at: what scapy put into a packet, and what headers say that lie."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from filter_oracle import some_packets
from scapy.all import (
    AH,
    ARP,
    GRE,
    ICMP,
    IP,
    SCTP,
    TCP,
    UDP,
    Dot1AD,
    Dot1Q,
    Ether,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Raw,
)

from tunnelbridge.batch import from_packets
from tunnelbridge.wire.five_tuple import FiveTuples, read_five_tuples
from tunnelbridge.wire.flow import read_flows


def read(frames: list[bytes]) -> FiveTuples:
    batch = from_packets(frames)
    return read_five_tuples(
        batch.memory, read_flows(batch.memory, batch.start, batch.start + batch.length)
    )


def rows(tuples: FiveTuples) -> list[tuple[int, ...]]:
    """Return (family, protocol, source, destination, ports), the address of no family as 0."""
    columns = [getattr(tuples, name).tolist() for name in FiveTuples.__slots__]
    found = []
    for family, protocol, *addresses, first, second in zip(*columns, strict=True):
        source, destination = (
            high << 64 | low if family else 0 for high, low in (addresses[:2], addresses[2:])
        )
        found.append((family, protocol, source, destination, first, second))
    return found


V4, V6 = {"src": "10.1.2.3", "dst": "203.0.113.250"}, {"src": "2001:db8::8:1", "dst": "fe80::ffff"}
PORTS = {"sport": 65535, "dport": 256}
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # or scapy asks the network
DATA = Raw(b"some data")
MF = {"flags": "MF", "id": 7}


@pytest.mark.parametrize(
    ("packet", "protocol", "ports"),
    [
        (IP(**V4) / TCP(**PORTS), 6, True),
        (IP(**V4) / UDP(**PORTS), 17, True),
        (IP(**V4, options=b"\x94\4\0\0") / UDP(**PORTS), 17, True),
        (IP(**V4) / SCTP(**PORTS), 132, True),
        (IP(**V4) / ICMP(), 1, False),
        (IP(**V4) / GRE() / IP() / TCP(), 47, False),
        (IP(**V4, proto=6) / b"\xff\xff\1", 6, False),
        (IP(**V4, **MF) / UDP(**PORTS) / DATA, 17, True),
        (IP(**V4, **MF, frag=9, proto=17) / DATA, 17, False),
        (IPv6(**V6) / TCP(**PORTS), 6, True),
        (IPv6(**V6) / UDP(**PORTS), 17, True),
        (IPv6(**V6) / ICMPv6EchoRequest(), 58, False),
        (IPv6(**V6, nh=59), 59, False),
        (IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(**PORTS), 6, True),
        (IPv6(**V6) / IPv6ExtHdrRouting() / UDP(**PORTS), 17, True),
        (IPv6(**V6) / IPv6ExtHdrFragment(offset=0, m=1) / UDP(**PORTS), 17, True),
        (IPv6(**V6) / IPv6ExtHdrFragment(offset=5, nh=17) / DATA, 17, False),
        (IPv6(**V6) / AH(nh=6, payloadlen=4, icv=b"x" * 12) / TCP(**PORTS), 6, True),
    ],
    ids=lambda value: value.summary().replace(" ", "") if hasattr(value, "summary") else None,
)  # fmt: skip
@pytest.mark.parametrize("tags", [(), (Dot1Q(vlan=5),), (Dot1AD(vlan=6), Dot1Q(vlan=7))], ids=len)
def test_as_scapy_made_them(packet: Any, protocol: int, ports: bool, tags: tuple[Any, ...]) -> None:
    frame = ETHER
    for tag in tags:
        frame /= tag
    addresses = [int(ip_address(packet[0].src)), int(ip_address(packet[0].dst))]
    expected = (packet[0].version, protocol, *addresses, *((65535, 256) if ports else (-1, -1)))
    # alone, and in company that is not IPv4
    assert rows(read([bytes(frame / packet)])) == [expected]
    arp = bytes(ETHER / ARP(psrc="10.0.0.1", hwsrc="02:00:00:00:00:01"))
    no_ip = (0, -1, 0, 0, -1, -1)
    assert rows(read([arp, bytes(frame / packet), arp])) == [no_ip, expected, no_ip]


def test_any_mixture_as_it_was_written() -> None:
    """Tags, fragments, extension headers, cut and lying headers."""
    packets = some_packets(random.Random(4), 3000)
    found = rows(read([packet.frame for packet in packets]))
    for packet, row in zip(packets, found, strict=True):
        expected = (packet.family, packet.protocol, packet.source, packet.destination)
        if packet.family == 0:
            assert row[0] == 0
        else:
            assert row == (*expected, packet.source_port, packet.destination_port), packet


@pytest.mark.parametrize("count", [0, 1, 64, 65])
@pytest.mark.parametrize("layer", [IP(**V4), IPv6(**V6), ARP()], ids=["ipv4", "ipv6", "arp"])
def test_batch_sizes(count: int, layer: Any) -> None:
    tuples = read([bytes(ETHER / layer / (TCP() if layer.name != "ARP" else b""))] * count)
    assert len(tuples) == count
    for name in FiveTuples.__slots__:
        column = getattr(tuples, name)
        assert column.shape == (count,)
        assert column.dtype == (np.uint64 if name.endswith(("high", "low")) else np.int64)
        assert len(set(column.tolist())) <= 1
