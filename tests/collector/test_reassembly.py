"""The kernel cuts and joins datagrams, scapy cuts packets; we must join what they cut."""

from __future__ import annotations

import random
import socket
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.packet import Packet, Raw

import lab
from collector.reassembly import Reassembler

SECOND = 1_000_000_000
COUNTERS = ("completed", "timed_out", "overlapped", "oversized", "evicted", "malformed")


def counters(reassembler: Reassembler) -> dict[str, int]:
    """All counters that are not zero."""
    return {name: n for name in COUNTERS if (n := getattr(reassembler, name))}


def noise(count: int, seed: int = 1) -> Raw:
    return Raw(random.Random(seed).randbytes(count))


def v4(count: int = 4000, number: int = 7, size: int = 1000, **fields: object) -> list[bytes]:
    """The fragments of an IPv4 packet."""
    packet = IP(src="10.0.0.1", dst="10.0.0.2", id=number, **fields) / UDP() / noise(count)
    return [bytes(part) for part in fragment(packet, size)]


def v6(count: int = 4000, number: int = 7, size: int = 1280, *before: Packet) -> list[bytes]:
    """The fragments of an IPv6 packet, behind the extension headers ``before``."""
    return [bytes(part) for part in fragment6(whole6(count, number, *before), size)]


def whole6(count: int, number: int | None, *before: Packet) -> Packet:
    packet = IPv6(src="fd00::1", dst="fd00::2")
    for header in before:
        packet /= header
    if number is not None:
        packet /= IPv6ExtHdrFragment(id=number)
    return packet / UDP() / noise(count)


def expected4(count: int = 4000, number: int = 7, **fields: object) -> bytes:
    packet = IP(src="10.0.0.1", dst="10.0.0.2", id=number, **fields) / UDP() / noise(count)
    return bytes(packet)


def expected6(count: int = 4000, *before: Packet) -> bytes:
    return bytes(whole6(count, None, *before))


def feed(reassembler: Reassembler, packets: list[bytes], time: int = 0) -> list[bytes]:
    """The datagrams that come out."""
    results = [reassembler.add(packet, time) for packet in packets]
    return [result for result in results if result is not None]


EXTENSIONS = [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(addresses=["fd00::3"])]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("count", [1473, 5000, 60000])
def test_kernels_fragments(root: None, family: socket.AddressFamily, count: int) -> None:
    is4 = family == socket.AF_INET
    sender, receiver = ("10.9.0.1", "10.9.0.2") if is4 else ("fd09::1", "fd09::2")
    prefix = "/24" if is4 else "/64"
    ethertype = 0x0800 if is4 else 0x86DD
    payload = random.Random(count).randbytes(count)
    with (
        lab.namespace(ipv6=True) as near,
        lab.namespace(ipv6=True) as far,
        lab.veth(near, far, sender + prefix, receiver + prefix) as (_, end),
        lab.in_namespace(near, socket.socket, family, socket.SOCK_DGRAM) as out,
        lab.in_namespace(far, socket.socket, family, socket.SOCK_DGRAM) as whole,
        lab.in_namespace(
            far, socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype)
        ) as wire,
    ):
        wire.bind((end, ethertype))
        whole.bind((receiver, 9))
        for one in (wire, whole):
            one.settimeout(5)
        out.sendto(payload, (receiver, 9))
        assert whole.recv(65536) == payload
        reassembler = Reassembler()
        found, cut = None, 0
        while found is None:
            packet, (_, _, kind, _, _) = wire.recvfrom(65536)
            layer = IP(packet) if is4 else IPv6(packet)
            if kind != socket.PACKET_HOST or not (is4 or IPv6ExtHdrFragment in layer):
                continue
            found = reassembler.add(packet, 0)
            cut += 1
        assert cut == -(-(count + 8) // (1480 if is4 else 1448))
    assert counters(reassembler) == {"completed": 1}
    layer = (IP if is4 else IPv6)(found)
    assert bytes(layer[UDP].payload) == payload
    again = layer.copy()
    del again[UDP].chksum
    if is4:
        del again.chksum, again.len
    else:
        del again.plen
    assert bytes(again) == found, "lengths and checksums are those that scapy computes"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        (v4(), expected4()),
        (v4(65507, size=1480), expected4(65507)),
        (v4(9, size=8), expected4(9)),
        (v4(tos=0x48, ttl=3), expected4(tos=0x48, ttl=3)),
        (v6(), expected6()),
        (v6(65519, 7, 1500), expected6(65519)),
        (v6(4000, 7, 1280, *EXTENSIONS), expected6(4000, *EXTENSIONS)),
        (v6(4000, 7, 1280, EXTENSIONS[1]), expected6(4000, EXTENSIONS[1])),
    ],
)
def test_any_order_and_repeats(fragments: list[bytes], expected: bytes, seed: int) -> None:
    dice = random.Random(seed)
    reassembler = Reassembler()
    order = list(fragments)
    if seed:
        dice.shuffle(order)
        order[1:1] = dice.choices(order[:1], k=2) if len(order) > 1 else []
    assert feed(reassembler, order) == [expected]
    assert counters(reassembler) == {"completed": 1}
    assert reassembler.pending == 0


def test_datagrams_are_told_apart() -> None:
    groups = [
        v4(), v4(number=8), v6(), v6(4000, 8),
        [bytes(p) for p in fragment(IP(src="10.0.0.3", dst="10.0.0.2", id=7) / noise(4000), 1000)],
        [bytes(p) for p in fragment(IP(src="10.0.0.1", dst="10.0.0.4", id=7) / noise(4000), 1000)],
        [bytes(p) for p in fragment(IP(src="10.0.0.1", dst="10.0.0.2", id=7, proto=1) / ICMP()
                                    / noise(4000), 1000)],
    ]  # fmt: skip
    reassembler = Reassembler()
    mixed = [group[index] for index in range(4) for group in groups if index < len(group)]
    mixed += [packet for group in groups for packet in group[4:]]
    assert len(feed(reassembler, mixed)) == len(groups)
    assert counters(reassembler) == {"completed": len(groups)}


def test_ipv6_key_leaves_out_the_next_header() -> None:
    """RFC 8200 §4.5: only the first fragment's next header counts."""
    first, *rest = v6()
    changed = [packet[:40] + b"\x06" + packet[41:] for packet in rest]
    assert feed(Reassembler(), [*changed, first]) == [expected6()]


def test_octets_behind_the_packet_are_ignored() -> None:
    padded = [packet + b"padding" for packet in v4()]
    assert feed(Reassembler(), padded) == [expected4()]
    padded = [packet + b"padding" for packet in v6()]
    assert feed(Reassembler(), padded) == [expected6()]


def test_first_fragments_options_and_flags_stay() -> None:
    packet = IP(src="10.0.0.1", dst="10.0.0.2", id=7, options=b"\x94\x04\0\0\x07\x07\4\0\0\0\0\0")
    packet = packet / UDP() / noise(3000)
    pieces = [bytes(part) for part in fragment(packet, 1000)]
    assert feed(Reassembler(), pieces[::-1]) == [bytes(packet)]
    both = [IP(piece) for piece in v4()]
    for piece in both:
        piece.flags |= "DF"
        del piece.chksum
    assert feed(Reassembler(), [bytes(piece) for piece in both]) == [expected4(flags="DF")]


def test_whole_packets_come_back_as_they_are() -> None:
    reassembler = Reassembler()
    odd = bytearray(expected4(20))
    odd[10:12] = b"\xbe\xef"  # a wrong checksum is not ours to mend
    for packet in (bytes(odd), expected4(20, flags="DF"), expected6(20, *EXTENSIONS)):
        assert reassembler.add(packet, 0) is packet
    assert counters(reassembler) == {}


def test_atomic_fragment_stands_alone() -> None:
    reassembler = Reassembler()
    assert feed(reassembler, v6()[:-1]) == []
    atomic = bytes(whole6(30, 7, EXTENSIONS[0]))
    assert feed(reassembler, [atomic]) == [expected6(30, EXTENSIONS[0])]
    assert feed(reassembler, v6()[-1:]) == [expected6()]
    assert counters(reassembler) == {"completed": 2}


def piece4(offset: int, data: bytes, more: bool, number: int = 7, **fields: object) -> bytes:
    header = IP(src="10.0.0.1", dst="10.0.0.2", proto=17, id=number, frag=offset // 8, **fields)
    header.flags = "MF" if more else 0
    return bytes(header / Raw(data))


def piece6(offset: int, data: bytes, more: bool, number: int = 7) -> bytes:
    header = IPv6ExtHdrFragment(nh=17, id=number, offset=offset // 8, m=more)
    return bytes(IPv6(src="fd00::1", dst="fd00::2") / header / Raw(data))


@pytest.mark.parametrize("piece", [piece4, piece6])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, b"a" * 40, True), (24, b"a" * 4, False)),  # teardrop: inside, and claims to be last
        ((0, b"a" * 40, True), (32, b"a" * 40, True)),  # tail on head
        ((32, b"a" * 40, True), (0, b"a" * 40, True)),
        ((0, b"a" * 40, True), (0, b"b" * 40, True)),  # same place, other octets
        ((0, b"a" * 40, True), (0, b"a" * 48, True)),
        ((0, b"a" * 40, True), (8, b"a" * 16, True)),  # inside
        ((8, b"a" * 16, True), (0, b"a" * 40, True)),  # around
        ((8, b"a" * 16, False), (24, b"a" * 8, True)),  # behind the end
        ((8, b"a" * 16, False), (8, b"a" * 16, True)),  # the end is no end
        ((8, b"a" * 16, True), (8, b"a" * 16, False)),
        ((8, b"a" * 16, False), (24, b"a" * 9, False)),  # two ends
        ((40, b"a" * 16, True), (8, b"a" * 16, False)),  # an end in front of others
    ],
)
def test_overlaps_drop_the_datagram(piece: object, first: tuple, second: tuple) -> None:
    reassembler = Reassembler()
    assert feed(reassembler, [piece(*first), piece(*second)]) == []
    assert counters(reassembler) == {"overlapped": 1}
    assert reassembler.pending == 0
    rest = [piece(0, b"a" * 8, True), piece(8, b"a" * 80, True), piece(88, b"a", False)]
    assert feed(reassembler, rest) == [], "what is still to come goes too (RFC 5722)"
    assert counters(reassembler) == {"overlapped": 1}
    assert feed(reassembler, [piece(0, b"a" * 8, True)], 31 * SECOND) == []
    assert len(feed(reassembler, [piece(8, b"b", False)], 31 * SECOND)) == 1
    assert counters(reassembler) == {"overlapped": 1, "completed": 1}


def test_ping_of_death() -> None:
    reassembler = Reassembler()
    assert feed(reassembler, [piece4(65528, b"a" * 100, False)]) == []
    assert feed(reassembler, [piece6(65528, b"a" * 100, False)]) == []
    assert counters(reassembler) == {"oversized": 2}
    assert reassembler.pending == 0


@pytest.mark.parametrize(("size", "fits"), [(65535 - 32, True), (65535 - 31, False)])
def test_headers_count_in_the_longest_datagram(size: int, fits: bool) -> None:
    """The first fragment has options that the others lack, so only the end shows it."""
    data, cut = b"a" * size, 60000
    options = b"\x07\x07\4\0\0\0\0\0\0\0\0\0"
    pieces = [piece4(0, data[:cut], True, options=options), piece4(cut, data[cut:], False)]
    for order in (pieces, pieces[::-1]):
        reassembler = Reassembler()
        found = feed(reassembler, order)
        assert [len(packet) for packet in found] == ([65535] if fits else [])
        assert counters(reassembler) == ({"completed": 1} if fits else {"oversized": 1})


def test_longest_ipv6_datagram() -> None:
    for size, fits in ((65535, True), (65536, False)):
        data = b"a" * size
        reassembler = Reassembler()
        pieces = [piece6(0, data[:60000], True), piece6(60000, data[60000:], False)]
        assert [len(packet) for packet in feed(reassembler, pieces)] == [40 + size] * fits
        assert counters(reassembler) == ({"completed": 1} if fits else {"oversized": 1})


def test_time_runs_out() -> None:
    first, *rest = v4()
    reassembler = Reassembler()
    assert reassembler.add(first, 5 * SECOND) is None
    assert feed(reassembler, rest[:1], 35 * SECOND) == [], "30 s are still in time"
    assert counters(reassembler) == {}
    assert feed(reassembler, rest[1:], 35 * SECOND + 1) == []
    assert counters(reassembler) == {"timed_out": 1}
    assert feed(reassembler, [first, rest[0]], 36 * SECOND) == [expected4()]


def test_time_that_jumps_back() -> None:
    first, *rest = v4()
    reassembler = Reassembler(timeout_ns=SECOND)
    feed(reassembler, v4(number=1)[:1], 100 * SECOND)
    feed(reassembler, [first], 10 * SECOND)  # older, but came later
    assert feed(reassembler, rest, 12 * SECOND) == []
    assert counters(reassembler) == {"timed_out": 1}
    assert reassembler.pending == 2


@pytest.mark.parametrize("data", [8, 1400])
def test_floods_are_bounded(data: int) -> None:
    limit = 1 << 20
    reassembler = Reassembler(limit_octets=limit)
    packet = bytearray(piece4(8, b"a" * data, True))
    count = 12000
    tracemalloc.start()
    for number in range(count):
        packet[4:6] = (number & 0xFFFF).to_bytes(2, "big")
        assert reassembler.add(bytes(packet), number) is None
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 1.5 * limit
    assert counters(reassembler) == {"evicted": count - reassembler.pending}
    assert reassembler.pending > 400
    packet = bytearray(piece4(0, b"b" * 8, True, number=count - 1))
    assert feed(reassembler, [bytes(packet)]) == []
    last = piece4(8 + data, b"c", False, number=count - 1)
    assert len(feed(reassembler, [last])) == 1, "the newest is still there"


def test_flood_of_tiny_fragments() -> None:
    limit = 1 << 20
    reassembler = Reassembler(limit_octets=limit)
    tracemalloc.start()
    for number in range(10):
        for offset in range(8, 8000, 8):
            reassembler.add(piece_fast(number, offset), 0)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 1.5 * limit
    assert reassembler.evicted == 10 - reassembler.pending > 0


@pytest.mark.parametrize("piece", [piece4, piece6])
def test_flood_of_dead_datagrams(piece: object) -> None:
    limit = 1 << 20
    reassembler = Reassembler(limit_octets=limit)
    feed(reassembler, [piece_fast(60000, 8)])
    at = 4 if piece is piece4 else 46
    first, second = (bytearray(piece(0, octet * 1400, True)) for octet in (b"a", b"b"))
    tracemalloc.start()
    for number in range(1, 3001):
        first[at : at + 2] = second[at : at + 2] = number.to_bytes(2, "big")
        assert feed(reassembler, [bytes(first), bytes(second)]) == []
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 1.5 * limit
    assert reassembler.pending == 0, "only dead ones are left"
    assert counters(reassembler) == {"overlapped": 3000, "evicted": 1}


TEMPLATE = piece4(8, b"a" * 8, True)


def piece_fast(number: int, offset: int, *, last: bool = False) -> bytes:
    word = offset // 8 | (0 if last else 0x2000)
    return TEMPLATE[:4] + number.to_bytes(2, "big") + word.to_bytes(2, "big") + TEMPLATE[8:]


@pytest.mark.parametrize(
    "packet",
    [
        b"", b"\x45", b"\x60", b"\x00" * 60, b"\x75" * 60,
        piece4(8, b"", False), piece4(8, b"", True), piece4(0, b"", True),
        piece4(0, b"a" * 9, True), piece6(0, b"a" * 9, True), piece6(8, b"", False),
        b"\x44" + piece4(8, b"a" * 8, True)[1:],
        b"\x4f" + piece4(8, b"a" * 8, True)[1:],
    ],
)  # fmt: skip
def test_what_no_datagram_can_hold_is_malformed(packet: bytes) -> None:
    reassembler = Reassembler()
    assert reassembler.add(packet, 0) is None
    assert counters(reassembler) == {"malformed": 1}
    assert reassembler.pending == 0


@pytest.mark.parametrize("packet", [v4()[1], v6()[1], v6(4000, 7, 1280, *EXTENSIONS)[1]])
def test_every_truncation_is_malformed(packet: bytes) -> None:
    reassembler = Reassembler()
    for length in range(len(packet)):
        assert reassembler.add(packet[:length], 0) is None
    assert counters(reassembler) == {"malformed": len(packet)}


@pytest.mark.parametrize("following", [44, 0, 43, 60])
def test_extension_headers_that_lead_out_of_the_packet(following: int) -> None:
    reassembler = Reassembler()
    packet = bytearray(bytes(whole6(30, 7, EXTENSIONS[0])))
    packet[40] = following
    for octet in range(256):
        packet[41] = octet  # the hop-by-hop header's length
        result = reassembler.add(bytes(packet), 0)
        assert result is None or octet < 6
    nothing = b"\x60\0\0\0\0\0" + bytes([following]) + bytes(33)
    assert reassembler.add(nothing, 0) is None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.binary(max_size=80)
        | st.binary(min_size=8, max_size=90).map(lambda tail: b"\x60\0\0\0\0\x20\x2c" + tail)
        | st.builds(
            lambda piece, offset, size, more, octet: piece(offset * 8, octet * size, more),
            st.sampled_from([piece4, piece6]), st.integers(0, 6), st.integers(0, 32),
            st.booleans(), st.sampled_from([b"a", b"b"]),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_nothing_raises_and_what_comes_out_is_sound(packets: list[bytes]) -> None:
    reassembler = Reassembler(limit_octets=4000)
    for packet in packets:
        result = reassembler.add(packet, 0)
        if result is None or result is packet:
            continue
        if result[0] >> 4 == 4:
            assert int.from_bytes(result[2:4], "big") == len(result)
            layer = IP(result)
            del layer.chksum
            assert bytes(layer)[:20] == result[:20]
        else:
            assert int.from_bytes(result[4:6], "big") == len(result) - 40
    assert reassembler._cost == sum(d.cost for d in reassembler._datagrams.values()) <= 4000
