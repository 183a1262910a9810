"""Later fragments go where their first one went, in whatever order they come."""

from __future__ import annotations

import random

import numpy as np
import outer
import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6

from tunnelbridge.batch import from_packets
from tunnelbridge.clone.fragments import FragmentTable
from tunnelbridge.clone.guard import LoopGuard
from tunnelbridge.clone.innermost import follow_innermost, source_hash
from tunnelbridge.wire.encapsulation import vxlan_tunnel
from tunnelbridge.wire.flow import Flows, Words, read_flows

V4 = ("10.0.0.1", "192.0.2.77")
V6 = ("2001:db8::1", "2001:db8:ffff::77")
versions = pytest.mark.parametrize("addresses", [V4, V6], ids=["ipv4", "ipv6"])


def follow(table: FragmentTable, *packets: bytes, tags: tuple[int, ...] = ()) -> Flows:
    """Return the flows of a batch after the table has seen it."""
    batch = from_packets([outer.frame(packet, *tags) for packet in packets])
    batch.memory.flags.writeable = False
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    table.follow(batch.memory, flows)
    return flows


def datagram(addresses: tuple[str, str], port: int = 1000, protocol: int = 17) -> bytes:
    return outer.ip(outer.udp(bytes(range(200)), port, 53), protocol, *addresses)


@versions
@pytest.mark.parametrize("tags", [(), (5,), (5, 6)])
def test_in_one_batch_and_over_batches(addresses: tuple[str, str], tags: tuple[int, ...]) -> None:
    whole = datagram(addresses)
    first, later = outer.fragments(whole, 64, 7)
    for batches in ([[first, later]], [[later, first]], [[first], [later]], [[first], [], [later]]):
        table = FragmentTable()
        parts = [follow(table, *batch, tags=tags) for batch in batches]
        expected = follow(table, whole, tags=tags)
        assert {hashed for part in parts for hashed in part.hash.tolist()} == set(
            expected.hash.tolist()
        )
        assert {ports for part in parts for ports in part.ports.tolist()} == {1000 << 16 | 53}
        assert (table.followed, table.orphaned) == (1, 0)


@versions
def test_too_late_is_an_orphan(addresses: tuple[str, str]) -> None:
    first, later = outer.fragments(datagram(addresses), 64, 7)
    table = FragmentTable()
    alone = follow(table, later)
    assert alone.ports.tolist() == [-1]
    assert (table.followed, table.orphaned) == (0, 1)
    follow(table, first)
    assert follow(table, later).hash[0] != alone.hash[0]
    assert (table.followed, table.orphaned) == (1, 1)


@versions
def test_whose_fragment_it_is(addresses: tuple[str, str]) -> None:
    """Source, destination, identification, and in IPv4 the protocol (RFC 791 §3.2, RFC 8200 §4.5)."""
    source, destination = addresses
    other = {V4: "10.0.0.2", V6: "2001:db8::2"}[addresses]
    strangers = [
        outer.fragments(datagram(addresses), 64, 8)[1],
        outer.fragments(datagram((other, destination)), 64, 7)[1],
        outer.fragments(datagram((source, other)), 64, 7)[1],
        outer.fragments(datagram((destination, source)), 64, 7)[1],
    ]
    if addresses == V4:
        strangers.append(outer.fragments(datagram(addresses, protocol=132), 64, 7)[1])
    table = FragmentTable()
    first, later = outer.fragments(datagram(addresses), 64, 7)
    follow(table, first)
    assert follow(table, *strangers).ports.tolist() == [-1] * len(strangers)
    assert (table.followed, table.orphaned) == (0, len(strangers))
    assert follow(table, *strangers, later).ports[-1] == 1000 << 16 | 53


def test_the_first_one_s_next_header_is_the_packet_s() -> None:
    """RFC 8200 §4.5: the others may say something else, and only the first one's counts."""
    table = FragmentTable()
    first, later = outer.fragments(datagram(V6), 64, 7)
    follow(table, first)
    assert follow(table, later[:40] + b"\x3b" + later[41:]).ports.tolist() == [1000 << 16 | 53]


@versions
def test_the_newest_first_fragment_counts(addresses: tuple[str, str]) -> None:
    """Identifications come round again."""
    table = FragmentTable()
    for port in (1000, 2000, 3000):
        first, later = outer.fragments(datagram(addresses, port), 64, 7)
        follow(table, first)
        assert follow(table, later).ports.tolist() == [port << 16 | 53]


@versions
def test_without_ports_they_follow_by_addresses(addresses: tuple[str, str]) -> None:
    table = FragmentTable()
    whole = datagram(addresses, protocol=89)
    flows = follow(table, *outer.fragments(whole, 64, 7))
    assert flows.ports.tolist() == [-1, -1]
    assert flows.hash[0] == flows.hash[1] == follow(table, whole).hash[0]
    assert table.followed == 1


def test_scapy_s_fragments_mixed_with_everything_else() -> None:
    """Many packets of both versions in many fragments, shuffled into odd batches behind their first."""
    chance = random.Random(3)
    packets: list[tuple[bytes, int]] = []
    for number in range(60):
        data, port = chance.randbytes(3000), 1024 + number
        packets += [
            (bytes(each), port)
            for each in fragment(
                IP(src="10.1.0.1", dst="10.2.0.2", id=number) / UDP(sport=port, dport=53) / data,
                600,
            )
        ]
        whole = IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrFragment(id=number)
        packets += [
            (bytes(each), port) for each in fragment6(whole / UDP(sport=port, dport=53) / data, 700)
        ]
        packets.append(
            (bytes(IP(src="10.1.0.1", dst="10.2.0.2") / UDP(sport=port, dport=53)), port)
        )
        packets.append((outer.ip(bytes(64), 89, "10.1.0.1", "10.9.0.9"), -1))
    table, at = FragmentTable(), 0
    while at < len(packets):
        size = chance.choice([0, 1, 2, 7, 50])
        batch = packets[at : at + size]
        chance.shuffle(batch)  # a first fragment counts from anywhere in the batch
        flows = follow(table, *(packet for packet, _ in batch))
        told = [int(port) >> 16 for port in flows.ports]
        assert told == [port for _, port in batch]
        at += size
    assert table.orphaned == 0
    assert table.followed > 500


@versions
def test_a_tunnel_in_fragments_is_its_inner_flow(addresses: tuple[str, str]) -> None:
    inner = datagram(("10.7.0.1", "10.7.0.2"), 4000)
    packet = outer.tunnelled(vxlan_tunnel(4789, 7), outer.frame(inner), *addresses)
    first, later = outer.fragments(packet, 104, 9)
    table, guard = FragmentTable(), LoopGuard([])

    def read(*frames: bytes) -> tuple[Flows, Words]:
        batch = from_packets([outer.frame(each) for each in frames])
        flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
        follow_innermost(batch.memory, flows, guard.check(batch, flows).innermost)
        table.follow(batch.memory, flows)
        return flows, source_hash(batch.memory, flows)

    naked, by_source = read(inner)
    for frames in ([first, later], [later], [packet]):
        flows, sources = read(*frames)
        assert set(flows.hash.tolist()) == set(naked.hash.tolist())
        assert set(sources.tolist()) == set(by_source.tolist())


def test_nothing_to_do_without_fragments() -> None:
    table = FragmentTable()
    assert follow(table).identification is None
    assert follow(table, datagram(V4), datagram(V6)).identification is None
    assert not table._entries["key"].any()
    assert (table.followed, table.orphaned) == (0, 0)


@pytest.mark.parametrize("count", [1, 256, 257])
def test_it_is_bounded(count: int) -> None:
    table = FragmentTable(256)
    size = table._entries.nbytes
    pairs = [outer.fragments(datagram(V4, number), 64, number) for number in range(count)]
    follow(table, *(first for first, _ in pairs))
    told = follow(table, *(later for _, later in pairs)).ports
    assert table._entries.nbytes == size
    assert table.followed + table.orphaned == count
    assert table.followed >= min(count, 256) // 2  # of 256 in 256 slots 1 - 1/e find a place
    right = np.arange(count) << 16 | 53
    assert ((told == right) | (told == -1)).all()
    assert int((told == right).sum()) == table.followed
