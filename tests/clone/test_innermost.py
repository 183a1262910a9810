"""Tunnelled frames hash like the flow inside them; tshark says which that is in foreign captures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import outer
import pytest
from scapy.utils import RawPcapReader
from test_guard import TUNNELS, Make

from lab import need
from tunnelbridge.batch import from_packets
from tunnelbridge.clone.guard import LoopGuard, Signature
from tunnelbridge.clone.innermost import follow_innermost, source_hash
from tunnelbridge.wire.encapsulation import vxlan_tunnel
from tunnelbridge.wire.flow import Flows, Words, read_flows
from tunnelbridge.wire.layer import Kind

ENDS = {4: ("192.0.2.1", "198.51.100.9"), 6: ("2001:db8::1", "2001:db8:9::9")}
HOSTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("2001:db8:a::1", "2001:db8:a::2")}
GENEVE_ON_47101 = Signature("192.0.2.99", Kind.GENEVE, 47101, 0)
ETHERNET = 1


def packet(version: int, ports: tuple[int, int] = (40000, 80), back: bool = False) -> bytes:
    """Return a TCP packet of the flow, or its answer."""
    a, b = HOSTS[version]
    if back:
        return outer.ip(outer.tcp(bytes(99), *ports[::-1]), 6, b, a)
    return outer.ip(outer.tcp(bytes(200), *ports), 6, a, b)


def follow(*frames: bytes, guard: LoopGuard | None = None) -> tuple[Flows, Words]:
    """Return the flows of a batch, and their source hashes, as the pipeline makes them."""
    batch = from_packets(list(frames))
    batch.memory.flags.writeable = False
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    checked = (guard or LoopGuard([GENEVE_ON_47101])).check(batch, flows)
    follow_innermost(batch.memory, flows, checked.innermost)
    return flows, source_hash(batch.memory, flows)


def naked(*frames: bytes) -> Flows:
    batch = from_packets(list(frames))
    return read_flows(batch.memory, batch.start, batch.start + batch.length)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("around", [4, 6])
@pytest.mark.parametrize("name", TUNNELS)
def test_every_tunnel_hashes_like_what_it_carries(name: str, version: int, around: int) -> None:
    make: Make = TUNNELS[name][0]
    a, b = ENDS[around]
    there, back = outer.frame(packet(version)), outer.frame(packet(version, back=True))
    other = outer.frame(packet(version, (40001, 80)))
    guard = LoopGuard([Signature("192.0.2.99", make().kind, make().port, 0), GENEVE_ON_47101])
    frames = [
        outer.frame(outer.tunnelled(make(), there, a, b)),
        outer.frame(outer.tunnelled(make(), back, b, a), 5),
        there,
        back,
        outer.frame(outer.tunnelled(make(), other, a, b), 5, 6),
    ]
    flows, sources = follow(*frames, guard=guard)
    expected = naked(there, back, there, back, other)
    assert flows.hash.tolist() == expected.hash.tolist()
    assert flows.entropy.tolist() == expected.entropy.tolist()
    assert flows.hash[0] == flows.hash[1] != flows.hash[4]
    assert sources[0] == sources[2] == sources[4] != sources[1] == sources[3]
    outside = naked(*frames)  # filters look at the packet as seen
    for column in ("ports", "protocol", "kind", "payload", "transport", "ethertype"):
        assert getattr(flows, column).tolist() == getattr(outside, column).tolist()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_depth(depth: int) -> None:
    frame = there = outer.frame(packet(4))
    for level in range(depth):
        around = outer.tunnelled(vxlan_tunnel(4789, level), frame, *ENDS[4 if level % 2 else 6])
        frame = outer.frame(around, level)
    assert follow(frame)[0].hash == naked(there).hash


@pytest.mark.parametrize("around", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("levels", [1, 2])
def test_ip_in_ip(version: int, around: int, levels: int) -> None:
    inside = {4: 4, 6: 41}
    inner, expected = packet(version), naked(outer.frame(packet(version))).hash
    number = inside[version]
    for _ in range(levels):
        inner, number = outer.ip(inner, number, *ENDS[around]), inside[around]
    assert follow(outer.frame(inner))[0].hash == expected


def test_mpls_in_udp_and_ethernet_in_ip() -> None:
    label = (16 << 12 | 1 << 8 | 64).to_bytes(4)
    mpls = outer.ip(outer.udp(label + packet(4), 50000, 6635), 17, *ENDS[4])
    etherip = outer.ip(b"\x30\x00" + outer.frame(packet(4), 7), 97, *ENDS[4])
    flows, _ = follow(outer.frame(mpls), outer.frame(etherip))
    assert set(flows.hash.tolist()) == set(naked(outer.frame(packet(4))).hash.tolist())


def test_what_carries_no_ip_keeps_the_outer_flow() -> None:
    arp = outer.MACS + bytes.fromhex("0806") + bytes(46)
    a, b = ENDS[4]
    of_arp = outer.frame(outer.tunnelled(vxlan_tunnel(4789, 1), arp, a, b))
    twice = outer.frame(outer.tunnelled(vxlan_tunnel(4789, 1), of_arp, *HOSTS[4]))
    keepalive = outer.frame(outer.ip(bytes(4), 47, a, b))
    cut = outer.frame(outer.tunnelled(vxlan_tunnel(4789, 1), outer.frame(packet(4))[:30], a, b))
    plain = outer.frame(packet(4))
    frames = [of_arp, keepalive, cut, plain, arp]
    flows, sources = follow(*frames)
    assert flows.hash.tolist() == naked(*frames).hash.tolist()
    assert sources[0] == sources[1] == sources[2]
    # of two tunnels with ARP inside, the inner one's outer header is the innermost IP
    assert follow(twice)[0].hash == naked(of_arp).hash


def test_an_error_is_not_what_it_quotes() -> None:
    """Neither outside nor inside a tunnel; an error is of the hosts that exchange it."""
    clone = outer.tunnelled(vxlan_tunnel(4789, 1), outer.frame(packet(4)), *ENDS[4])
    error = outer.error(clone, "192.0.2.254", ENDS[4][0])
    inside = outer.tunnelled(vxlan_tunnel(4789, 2), outer.frame(error), *HOSTS[6])
    flows, _ = follow(outer.frame(error), outer.frame(inside))
    assert set(flows.hash.tolist()) == set(naked(outer.frame(error)).hash.tolist())


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_inside(version: int) -> None:
    first, later = outer.fragments(packet(version), 104, 7)
    frames = [
        outer.frame(outer.tunnelled(vxlan_tunnel(4789, 1), outer.frame(each), *ENDS[4]))
        for each in (first, later)
    ]
    flows, _ = follow(*frames)
    assert flows.hash.tolist() == naked(outer.frame(first), outer.frame(later)).hash.tolist()
    assert flows.identification is None  # the outer packets are whole


@pytest.mark.parametrize("version", [4, 6])
def test_the_source_alone(version: int) -> None:
    a, b = HOSTS[version]
    packets = [
        packet(version),
        packet(version, (1, 2)),
        outer.ip(bytes(40), 89, a, ENDS[version][0]),
        *outer.fragments(packet(version), 104, 9),
        packet(version, back=True),
        outer.ip(bytes(40), 89, b, a),
    ]
    _, sources = follow(*(outer.frame(each, *[5] * (i % 3)) for i, each in enumerate(packets)))
    assert sources.dtype == np.uint64
    assert len(set(sources[:5].tolist())) == 1
    assert len(set(sources[5:].tolist())) == 1
    assert sources[0] != sources[5]


def test_the_source_of_frames_without_ip_is_their_mac() -> None:
    arp = outer.MACS + bytes.fromhex("0806") + bytes(46)
    elsewhere = bytes.fromhex("ffffffffffff") + arp[6:]
    stranger = arp[:11] + b"\x99" + arp[12:]
    _, sources = follow(arp, elsewhere, stranger, outer.frame(packet(4)), outer.frame(packet(6)))
    assert sources[0] == sources[1]
    assert len(set(sources.tolist())) == 4


@pytest.mark.parametrize("version", [4, 6])
def test_the_source_of_a_bad_ip_header_is_its_mac(version: int) -> None:
    frame = outer.frame(packet(version))
    bad = frame[:14] + b"\xf5" + frame[15:]  # version 15
    other = bad[:22] + bytes(16) + bad[38:]  # and other addresses
    _, sources = follow(bad, other)
    assert sources[0] == sources[1] != follow(frame)[1][0]


@pytest.mark.parametrize("count", [0, 1, 2, 256, 257])
def test_sizes(count: int) -> None:
    frame = outer.frame(outer.tunnelled(vxlan_tunnel(4789, 1), outer.frame(packet(4)), *ENDS[4]))
    if not count:
        flows = naked()
        checked = LoopGuard([]).check(from_packets([]), flows)
        follow_innermost(from_packets([]).memory, flows, checked.innermost)
        assert flows.hash.shape == checked.reason.shape == (0,)
        return
    flows, sources = follow(*[frame] * count)
    assert len(set(flows.hash.tolist())) == len(set(sources.tolist())) == 1
    assert flows.hash.shape == sources.shape == (count,)


def test_a_selection_keeps_its_rows() -> None:
    tunnelled = outer.frame(
        outer.tunnelled(vxlan_tunnel(4789, 1), outer.frame(packet(6)), *ENDS[4])
    )
    flows, _ = follow(outer.frame(packet(4)), tunnelled)
    for index in (np.array([1]), np.array([False, True])):
        chosen = flows.select(index)
        for name in Flows.__slots__:
            column = getattr(flows, name)
            kept = getattr(chosen, name)
            assert kept is None if column is None else kept.tolist() == column[index].tolist()


def test_foreign_captures_as_tshark_reads_them(captures: Path) -> None:
    need("tshark")
    flows_seen, tunnelled = 0, 0
    for path in sorted(captures.glob("zeek/*.pcap*")) + sorted(captures.glob("tcpdump/*.pcap")):
        with RawPcapReader(str(path)) as reader:
            records = list(reader)
            linktype = getattr(reader, "linktype", None) or records[0][1].linktype
        if linktype != ETHERNET or path.name in BLIND:
            continue
        flows, _ = follow(*(bytes(octets) for octets, _ in records))
        for number, (expected, headers) in enumerate(innermost_of(path)):
            if expected is not None:
                assert flows.hash[number] == naked(expected).hash[0], (path.name, number + 1)
                flows_seen += 1
                tunnelled += headers > 1
    assert flows_seen > 800
    assert tunnelled > 700


ERRORS = {"icmp": {3, 4, 5, 11, 12}, "icmpv6": {1, 2, 3, 4}}
BLIND = {"bigtcp-ipv4-vxlan-ipv6.pcap", "mpls-6in6-6in6-4in6-invalid-version-4.pcap"}
"""Where tshark stops at a UDP length of 0, and names an IPv4 header that is none."""
FIELDS = (
    *("frame.protocols", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst"),
    *("tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport", "icmp.type", "icmpv6.type"),
)


def innermost_of(path: Path) -> list[tuple[bytes | None, int]]:
    """Return a frame of the flow that tshark sees innermost, and how many IP headers there are.

    None where tshark sees no IP or an ICMP error (what is quoted looks innermost to it).
    """
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=a"]
    command += ["-E", "separator=/t", "-E", "aggregator=|", "-o", "ip.defragment:FALSE"]
    command += ["-d", "udp.port==8472,vxlan", "-d", "udp.port==47101,geneve"]
    for field in FIELDS:
        command += ["-e", field]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in lines.splitlines()]
    return [_frame_of(dict(zip(FIELDS, row, strict=True))) for row in rows]


def _frame_of(row: dict[str, str]) -> tuple[bytes | None, int]:
    protocols = row["frame.protocols"].split(":")
    headers = [i for i, name in enumerate(protocols) if name in ("ip", "ipv6")]
    errors = (
        kind in errors
        for name, errors in ERRORS.items()
        for kind in map(int, filter(None, row[f"{name}.type"].split("|")))
    )
    if not headers or any(errors):
        return None, len(headers)
    version, behind = protocols[headers[-1]], protocols[headers[-1] + 1 :]
    addresses = [row[f"{version}.{end}"].split("|")[-1] for end in ("src", "dst")]
    for name, number in (("tcp", 6), ("udp", 17)):
        if name in behind:
            ports = [int(row[f"{name}.{end}port"].split("|")[-1]) for end in ("src", "dst")]
            return outer.frame(outer.ip(outer.udp(b"", *ports), number, *addresses)), len(headers)
    return outer.frame(outer.ip(b"", 89, *addresses)), len(headers)
