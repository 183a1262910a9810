"""The flow columns and their hash: equal for both directions, different for different flows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import outer
import pytest
from golden import FRAME

from tunnelbridge.batch import from_packets
from tunnelbridge.wire import udp
from tunnelbridge.wire.flow import Flows, read_flows
from tunnelbridge.wire.layer import Kind

V4 = ("10.0.0.1", "192.0.2.77")
V6 = ("2001:db8::1", "2001:db8:ffff::77")


def read(*frames: bytes) -> Flows:
    """Read the flows of a batch."""
    batch = from_packets(list(frames))
    return read_flows(batch.memory, batch.start, batch.start + batch.length)


def hashes(*frames: bytes) -> list[int]:
    """Return the frames' hashes, which must not depend on the company a frame is in."""
    together = read(*frames).entropy
    alone = [int(read(frame).entropy[0]) for frame in frames]
    assert together.tolist() == alone
    assert together.dtype == np.int64
    assert all(0 <= value < 65536 for value in alone)
    return alone


def turned(frame: bytes) -> bytes:
    """Swap the MAC addresses."""
    return frame[6:12] + frame[:6] + frame[12:]


def both(protocol: int, addresses: tuple[str, str], ports: tuple[int, int], *tags: int) -> Any:
    """Return a packet and its answer."""
    source, destination = addresses
    a, b = ports
    there = outer.ip(outer.udp(bytes(20), a, b), protocol, source, destination)
    back = outer.ip(outer.udp(bytes(9), b, a), protocol, destination, source)
    return outer.frame(there, *tags), turned(outer.frame(back, *tags))


@pytest.mark.parametrize("addresses", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("protocol", [6, 17, 33, 132, 136])
@pytest.mark.parametrize("tags", [(), (5,), (5, 6)])
def test_both_directions_and_the_ports_count(
    addresses: tuple[str, str], protocol: int, tags: tuple[int, ...]
) -> None:
    there, back = both(protocol, addresses, (40000, 443), *tags)
    other, _ = both(protocol, addresses, (40001, 443), *tags)
    swapped, _ = both(protocol, addresses, (443, 40000), *tags)
    first, second, third, fourth = hashes(there, back, other, swapped)
    assert first == second
    assert len({first, third, fourth}) == 3
    assert hashes(*both(protocol, addresses, (53, 53), *tags))[0] != first


@pytest.mark.parametrize("addresses", [V4, V6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("protocol", [1, 47, 50, 89])
def test_without_ports_the_addresses_count(addresses: tuple[str, str], protocol: int) -> None:
    there, back = both(protocol, addresses, (1, 2))
    other, _ = both(protocol, addresses, (3, 4))
    assert len(set(hashes(there, back, other))) == 1
    elsewhere, _ = both(protocol, (addresses[0], addresses[0]), (1, 2))
    assert hashes(elsewhere) != hashes(there)


@pytest.mark.parametrize("addresses", [V4, V6], ids=["ipv4", "ipv6"])
def test_first_fragments_hash_like_their_flow_and_later_ones_by_addresses(
    addresses: tuple[str, str],
) -> None:
    packets = [
        outer.ip(outer.udp(bytes(range(200)), port, 53), 17, *addresses) for port in (1000, 2000)
    ]
    parts = [outer.frame(part) for packet in packets for part in outer.fragments(packet, 64, 9)]
    whole = [outer.frame(packet) for packet in packets]
    flows = read(*parts, *whole)
    assert flows.fragment.tolist() == [True] * 4 + [False] * 2
    assert (flows.kind[:4] == Kind.NONE).all()
    assert (flows.kind[4:] == Kind.UDP).all()
    assert flows.identification is not None
    assert flows.first_fragment is not None
    assert flows.identification.tolist() == [9, 9, 9, 9, -1, -1]
    assert flows.first_fragment.tolist() == [True, False, True, False, False, False]
    assert flows.protocol.tolist() == [17] * 6
    ports = [1000 << 16 | 53, 2000 << 16 | 53]
    assert flows.ports.tolist() == [ports[0], -1, ports[1], -1, *ports]
    first, later, second, later_too, *of_whole = hashes(*parts, *whole)
    assert [first, second] == of_whole
    assert later == later_too
    assert len({first, second, later}) == 3


def test_no_fragments_no_columns_of_fragments() -> None:
    flows = read(FRAME, outer.frame(outer.ipv6(outer.udp(b"", 1, 2), 17, *V6)))
    assert flows.identification is None
    assert flows.first_fragment is None


def test_what_is_no_ip_hashes_by_its_mac_addresses() -> None:
    arp = FRAME[:12] + b"\x08\x06" + bytes(46)
    stranger = FRAME[:11] + b"\x0c" + arp[12:]
    first, second, third = hashes(arp, turned(arp), stranger)
    assert first == second
    assert first != third


def test_columns() -> None:
    tagged = outer.frame(outer.ipv4(outer.udp(b"", 1, 4789), 17, *V4), 0xA005, 6) + bytes(9)
    v6 = outer.frame(outer.ipv6(bytes(4), 47, *V6))
    short = outer.MACS + b"\x08\x00" + b"\x45\x00"
    flows = read(tagged, v6, short, FRAME)
    start = flows.start
    assert flows.tag.tolist() == [0x8100_A005, 0, 0, 0]
    assert flows.ethertype.tolist() == [0x0800, 0x86DD, 0x0800, 0x0800]
    assert (flows.payload - start).tolist() == [22, 14, 14, 14]
    assert (flows.transport - start)[[0, 1, 3]].tolist() == [42, 54, 34]
    assert (flows.end - start)[[0, 1, 3]].tolist() == [50, 58, 46]
    assert flows.kind.tolist() == [Kind.UDP, Kind.GRE, Kind.NONE, Kind.UDP]
    assert flows.fragment.tolist() == [False] * 4
    assert flows.protocol.tolist() == [17, 47, -1, 17]
    assert flows.ports.tolist() == [1 << 16 | 4789, -1, -1, int.from_bytes(FRAME[34:38])]
    assert (flows.entropy == flows.hash >> np.uint64(48)).all()


def test_ports_behind_extension_headers() -> None:
    """The protocol and the ports are those of the upper layer (RFC 8200 §4)."""
    datagram = outer.udp(bytes(20), 40000, 53)
    options = bytes([17, 0, 1, 4, 0, 0, 0, 0])
    atomic = bytes([17, 0, 0, 0, 0, 0, 0, 9])
    plain = outer.frame(outer.ipv6(datagram, 17, *V6))
    behind = [
        outer.frame(outer.ipv6(options + datagram, 60, *V6)),
        outer.frame(outer.ipv6(atomic + datagram, 44, *V6)),
    ]
    flows = read(plain, *behind)
    assert flows.protocol.tolist() == [17] * 3
    assert flows.ports.tolist() == [40000 << 16 | 53] * 3
    assert len(set(hashes(plain, *behind))) == 1


@pytest.mark.parametrize("addresses", [V4, V6], ids=["ipv4", "ipv6"])
def test_ports_that_are_cut_off_are_unknown(addresses: tuple[str, str]) -> None:
    frame = outer.frame(outer.ip(outer.udp(bytes(20), 40000, 53), 17, *addresses))
    header = {V4: 34, V6: 54}[addresses]
    flows = read(*(frame[: header + octets] for octets in range(6)))
    assert flows.ports.tolist() == [-1] * 4 + [40000 << 16 | 53] * 2
    assert flows.protocol.tolist() == [17] * 6
    short = read(frame[: header - 1])
    assert (short.protocol.tolist(), short.ports.tolist()) == ([-1], [-1])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_sizes(count: int) -> None:
    flows = read(*[FRAME] * count)
    for name in (*Flows.__slots__, "entropy"):
        column = getattr(flows, name)
        assert column is None or column.shape == (count,), name


def test_any_octets_do_no_harm() -> None:
    chance = random.Random(7)
    frames = [FRAME, outer.frame(outer.ipv6(outer.udp(bytes(8), 1, 2), 17, *V6), 3)]
    for _ in range(60):
        batch = []
        for _ in range(20):
            frame = bytearray(chance.choice(frames))
            for _ in range(chance.randrange(4)):
                frame[chance.randrange(12, len(frame))] = chance.randrange(256)
            batch.append(bytes(frame[: chance.randrange(14, len(frame) + 1)]))
        hashes(*batch)


@pytest.mark.parametrize("version", [4, 6])
def test_the_source_ports_are_used_evenly(version: int) -> None:
    """Chi-square over all 16384 ports; flows of one server, as clients come: ports in a row."""
    prefix = {4: "10.0.{}.{}", 6: "2001:db8::{:x}:{:x}"}[version]
    server = {4: "192.0.2.80", 6: "2001:db8:1::80"}[version]
    frames = [
        outer.frame(
            outer.ip(outer.udp(b"", 32768 + port, 443), 17, prefix.format(net, host), server)
        )
        for net in range(8)
        for host in range(1, 33)
        for port in range(128)
    ]
    ports = udp.FIRST_SOURCE_PORT + read(*frames).entropy % udp.SOURCE_PORTS
    assert ports.min() >= 49152
    assert ports.max() <= 65535
    seen = np.bincount(ports - 49152, minlength=16384)
    expected = len(frames) / 16384
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert abs(chi_square - 16383) < 5 * (2 * 16383) ** 0.5
    for bits in (1, 2, 3):  # and a pool that takes the hash modulo its size is loaded evenly
        share = np.bincount(ports % (1 << bits)) / len(frames)
        assert abs(share - 1 / (1 << bits)).max() < 0.01
