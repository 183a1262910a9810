"""Copies of one packet are found whatever routers changed; nothing else is, and scalar code agrees."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from collector.contiguous import contiguous
from collector.dedup import Deduplicator, _Table
from collector.digest import Digester, Digests
from tunnelbridge.batch import Batch, from_packets

MS = 1_000_000
WINDOW = 5 * MS
A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
C, D = "02:00:00:00:00:0c", "02:00:00:00:00:0d"


def batch_of(packets: list[Any], times: list[int] | None = None) -> Batch:
    batch = from_packets([bytes(packet) for packet in packets])
    if times is not None:
        batch.timestamp = np.array(times, np.int64)
    return batch


def find(
    work: Deduplicator,
    packets: list[Any],
    times: list[int] | None = None,
    streams: list[int] | None = None,
) -> list[bool]:
    streams = streams or [0] * len(packets)
    return work.find(batch_of(packets, times), np.array(streams, np.int64)).tolist()


def frame(*inner: Packet, macs: tuple[str, str] = (A, B)) -> Packet:
    packet: Packet = Ether(dst=macs[0], src=macs[1])
    for layer in inner:
        packet /= layer
    return packet


def ip(number: int = 7, ttl: int = 64, **fields: Any) -> Packet:
    return IP(src="192.0.2.1", dst="198.51.100.2", id=number, ttl=ttl, **fields)


TEXT = Raw(bytes(range(1, 60)))
ROUTED = [
    frame(ip(ttl=64), TCP(sport=1000, dport=80, seq=5), TEXT),
    frame(ip(ttl=63), TCP(sport=1000, dport=80, seq=5), TEXT, macs=(C, D)),
    frame(Dot1Q(vlan=7), ip(ttl=62, tos=0x48), TCP(sport=1000, dport=80, seq=5), TEXT),
    frame(Dot1AD(vlan=9), Dot1Q(vlan=7), ip(), TCP(sport=1000, dport=80, seq=5, chksum=1), TEXT),
]


def test_what_routers_and_switches_change_is_tolerated() -> None:
    work = Deduplicator(WINDOW, 1)
    assert find(work, ROUTED, [0, MS, 2 * MS, 5 * MS]) == [False, True, True, True]
    assert work.duplicates == 3


def test_copies_in_later_batches_are_found_too() -> None:
    work = Deduplicator(WINDOW, 1)
    for number, packet in enumerate(ROUTED):
        assert find(work, [packet], [number * MS]) == [number > 0]


def test_a_copy_beyond_the_window_is_another_packet() -> None:
    work = Deduplicator(WINDOW, 1)
    assert find(work, ROUTED[:2], [0, WINDOW + 1]) == [False, False]
    assert find(work, ROUTED[2:3], [2 * WINDOW + 1]) == [True]  # of the second one


def test_the_window_reaches_both_ways() -> None:
    work = Deduplicator(WINDOW, 1)
    assert find(work, [ROUTED[0]], [10 * WINDOW]) == [False]
    assert find(work, [ROUTED[1]], [9 * WINDOW]) == [True]
    assert find(work, [ROUTED[1]], [9 * WINDOW - 1]) == [False]


def test_ipv6_over_two_taps() -> None:
    def packet(limit: int, macs: tuple[str, str] = (A, B)) -> Packet:
        six = IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=limit, tc=limit, fl=limit)
        return frame(six, UDP(sport=5, dport=6), TEXT, macs=macs)

    assert find(Deduplicator(WINDOW, 1), [packet(64), packet(63, (C, D))]) == [False, True]


def test_padding_behind_the_ip_packet_is_no_difference() -> None:
    short = bytes(frame(ip(), UDP(sport=1, dport=2), Raw(b"ab")))
    assert find(Deduplicator(WINDOW, 1), [short, short.ljust(60, b"\0")]) == [False, True]


def test_retransmissions_are_no_duplicates() -> None:
    """A new identification in IPv4; in IPv6, and with identification 0, the same way twice."""
    tcp = TCP(sport=1000, dport=80, seq=5, flags="A")
    six = IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=9)
    for packets in (
        [frame(ip(1), tcp, TEXT), frame(ip(2), tcp, TEXT)],
        [frame(ip(0, flags="DF"), tcp, TEXT)] * 3,
        [frame(six, tcp, TEXT)] * 3,
        [frame(six, tcp)] * 4,  # duplicate acknowledgements
    ):
        assert not any(find(Deduplicator(WINDOW, 1), packets))
        work = Deduplicator(WINDOW, 1)
        assert not any(find(work, [packet])[0] for packet in packets)


@pytest.mark.parametrize("change", ["stream", "hops", "mac", "tag", "direction"])
def test_a_tcp_copy_without_identification_shows_by_its_way(change: str) -> None:
    def packet(limit: int = 64, macs: tuple[str, str] = (A, B), tag: bool = False) -> Packet:
        six = IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=limit)
        layers = [six, TCP(sport=1, dport=2, seq=3), TEXT]
        return frame(*([Dot1Q(vlan=3)] if tag else []), *layers, macs=macs)

    other = {
        "hops": packet(limit=63),
        "mac": packet(macs=(C, D)),
        "tag": packet(tag=True),
    }.get(change, packet())
    batch = batch_of([packet(), other, packet(), other])
    streams = np.array([0, 1, 0, 1] if change == "stream" else [0] * 4)
    if change == "direction":
        batch.direction = np.array([0, 1, 0, 1], np.uint8)
    # the third is a retransmission on the first's way, the fourth its copy
    found = Deduplicator(WINDOW, 1).find(batch, streams)
    assert found.tolist() == [False, True, False, True]


PACKETS = {
    "tcp": frame(ip(), TCP(sport=1, dport=2, options=[("Timestamp", (5, 6))]), TEXT),
    "udp": frame(ip(), UDP(sport=1, dport=2), TEXT),
    "icmp": frame(ip(), ICMP(), TEXT),
    "options": frame(ip(options=[b"\x94\x04\x00\x00"]), UDP(sport=1, dport=2), TEXT),
    "tagged": frame(Dot1Q(vlan=5), ip(), TCP(sport=1, dport=2), TEXT),
    "fragment": frame(ip(frag=3, flags="MF", proto=17), TEXT),
    "fragment-of-tcp": frame(ip(frag=3, proto=6), TEXT),
    "first-fragment": frame(ip(flags="MF"), UDP(sport=1, dport=2), TEXT),
    "tcp6": frame(IPv6(src="2001:db8::1", dst="2001:db8::2"), TCP(sport=1, dport=2), TEXT),
    "udp6": frame(
        IPv6(src="2001:db8::1", dst="2001:db8::2"),
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        UDP(sport=1, dport=2),
        TEXT,
    ),
    "fragment6": frame(
        IPv6(src="2001:db8::1", dst="2001:db8::2"), IPv6ExtHdrFragment(offset=4, m=1), TEXT
    ),
    "arp": frame(ARP(psrc="192.0.2.1", pdst="192.0.2.2")),
    "other": frame(Raw(b"x" * 50), macs=(A, B)),
}


def _left_out(packet: Packet) -> set[int]:
    """Return the offsets that do not count, by scapy's dissection and the RFCs' layouts."""
    octets = bytes(packet)
    parsed = Ether(octets)
    at, tagged = 14, parsed.haslayer(Dot1Q)
    out: set[int] = set()
    if tagged:
        out |= {14, 15}
        at = 18
    if parsed.haslayer(IP):
        out |= {*range(12), at + 1, at + 8, at + 10, at + 11}
        transport = at + parsed[IP].ihl * 4
    elif parsed.haslayer(IPv6):
        # the octet that is changed by its last bit holds the traffic class there
        out |= {*range(12), at, at + 1, at + 2, at + 3, at + 7}
        transport = octets.index(bytes(parsed[UDP])[:4], at + 40) if UDP in parsed else at + 40
    else:
        return out
    if TCP in parsed:
        out |= {transport + 16, transport + 17}
    if UDP in parsed and not (IP in parsed and parsed[IP].frag):
        out |= {transport + 6, transport + 7}
    return out


@pytest.mark.parametrize("name", PACKETS)
def test_every_octet_counts_but_those_that_change_on_the_way(name: str) -> None:
    """Each octet of the packet is changed by itself."""
    octets = bytes(PACKETS[name])
    changed = [
        octets[:place] + bytes([octets[place] ^ 0x01]) + octets[place + 1 :]
        for place in range(len(octets))
    ]
    digests = Digester(5).read(batch_of([octets, *changed]), np.zeros(len(octets) + 1, np.int64))
    same = set(np.flatnonzero(digests.value[1:] == digests.value[0]).tolist())
    assert same == _left_out(PACKETS[name])


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 40, 63, 64, 65, 1459, 1460, 9000, 65000])
def test_lengths_and_last_octets_count(size: int) -> None:
    whole = bytes(frame(ip(len=0), UDP(sport=1, dport=2, len=8), Raw(b"\0" * size)))
    packets = [whole, whole + b"\0", whole[:-1] + b"\x80", whole[:-1]]
    digests = Digester(5).read(batch_of(packets), np.zeros(4, np.int64))
    assert len(set(digests.value.tolist())) == 4


def test_the_digest_is_of_octets_not_of_where_they_lie() -> None:
    """Anything may lie before and behind; whole batches and single frames agree."""
    generator = random.Random(3)
    packets = [bytes(packet) for packet in PACKETS.values()]
    one = [Digester(5).read(batch_of([each]), np.zeros(1, np.int64)) for each in packets]
    noise = [generator.randbytes(generator.randrange(90)) for _ in range(len(packets) + 1)]
    memory = noise[0] + b"".join(a + b for a, b in zip(packets, noise[1:], strict=True))
    batch = batch_of(packets)
    batch.memory = np.frombuffer(memory, np.uint8)
    starts, at = [], len(noise[0])
    for packet, after in zip(packets, noise[1:], strict=True):
        starts.append(at)
        at += len(packet) + len(after)
    batch.start = np.array(starts)
    found = Digester(5).read(batch, np.zeros(len(packets), np.int64))
    for column in ("value", "path", "is_vague"):
        expected = [getattr(each, column)[0] for each in one]
        assert getattr(found, column).tolist() == expected
    assert found.is_vague.tolist() == [name == "tcp6" for name in PACKETS]
    assert len(set(found.value.tolist())) == len(packets)


def test_changes_do_not_cancel_out() -> None:
    """The highest bits of two words, and two words that change places."""
    text = bytes(range(64))
    flipped, swapped = bytearray(text), text[8:16] + text[:8] + text[16:]
    flipped[7] ^= 0x80  # behind a UDP header of one word
    flipped[15] ^= 0x80
    packets = [
        bytes(frame(ip(), UDP(sport=1, dport=2, chksum=1), Raw(bytes(each))))
        for each in (text, flipped, swapped)
    ]
    digests = Digester(5).read(batch_of(packets), np.zeros(3, np.int64))
    assert len(set(digests.value.tolist())) == 3


def test_fragments_have_an_identification() -> None:
    """So a copy of one is a duplicate whatever way it came."""
    six = IPv6(src="2001:db8::1", dst="2001:db8::2")
    packet = frame(six, IPv6ExtHdrFragment(m=1, id=7, nh=6), TCP(sport=1, dport=2), TEXT)
    assert find(Deduplicator(WINDOW, 1), [packet, packet]) == [False, True]


def test_another_key_gives_other_digests() -> None:
    batch, none = batch_of(list(PACKETS.values())), np.zeros(len(PACKETS), np.int64)
    first, second = (Digester(key).read(batch, none).value for key in (1, 2))
    assert not (first == second).any()


def test_copies_with_and_without_a_head() -> None:
    """A bare IP packet behind a synthetic MAC header is the copy of a whole frame."""
    whole = bytes(ROUTED[0])
    bare = Batch(
        memory=np.frombuffer(whole[14:] + whole, np.uint8),
        start=np.array([0, len(whole) - 14]),
        length=np.array([len(whole) - 14, len(whole)]),
        wire_length=np.array([len(whole)] * 2),
        timestamp=np.array([0, 0]),
        direction=np.zeros(2, np.uint8),
        head=np.frombuffer(bytes(12) + b"\x08\x00", np.uint8),
        head_start=np.array([0, 0]),
        head_length=np.array([14, 0]),
    )
    joined = contiguous(bare)
    assert [joined.octets(0), joined.octets(1)] == [bytes(12) + whole[12:], whole]
    assert Deduplicator(WINDOW, 1).find(bare, np.array([0, 1])).tolist() == [False, True]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 200)), max_size=20), st.integers(0, 80)
)
def test_heads_are_joined(sizes: list[tuple[int, int]], behind: int) -> None:
    generator = random.Random(len(sizes))
    heads = [generator.randbytes(head) for head, _ in sizes]
    bodies = [generator.randbytes(body) for _, body in sizes]
    batch = from_packets([b"\xee" * behind, *bodies, b"\xee" * behind]).select(
        np.arange(1, len(sizes) + 1)
    )
    batch.head = np.frombuffer(b"".join(heads), np.uint8)
    batch.head_length = np.array([len(head) for head in heads], np.int64)
    batch.head_start = np.cumsum(batch.head_length) - batch.head_length
    joined = contiguous(batch)
    assert joined.head_length is None
    for number in range(len(sizes)):
        assert joined.octets(number) == heads[number] + bodies[number]


def test_batches_of_no_and_one_frame() -> None:
    work = Deduplicator(WINDOW, 1)
    assert find(work, []) == []
    assert find(work, ROUTED[:1]) == [False]
    assert find(work, []) == []


class Scalar:
    """The rule, one packet at a time."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, int]] = {}

    def take(self, value: int, time: int, path: int, vague: bool) -> bool:
        then, way = self.seen.get(value, (-(1 << 61), 0))
        if abs(time - then) <= WINDOW:
            return not vague or path != way
        self.seen[value] = (time, path)
        return False


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(1, 6), st.integers(-WINDOW // 2, 2 * WINDOW), st.integers(1, 2),
                st.booleans(),
            ),
            max_size=24,
        ),
        max_size=5,
    )
)  # fmt: skip
def test_scalar_code_agrees(batches: list[list[tuple[int, int, int, bool]]]) -> None:
    work, scalar, now = Deduplicator(WINDOW, 1), Scalar(), 10**18
    for rows in batches:
        times = []
        for _, step, _, _ in rows:
            now += step
            times.append(now)
        digests = Digests(
            np.array([row[0] for row in rows], np.uint64),
            np.array([row[2] for row in rows], np.uint64),
            np.array([row[3] for row in rows], np.bool_),
        )
        found = work._compare(digests, np.array(times, np.int64))
        assert found.tolist() == [
            scalar.take(value, time, path, vague)
            for (value, _, path, vague), time in zip(rows, times, strict=True)
        ]


def test_the_table_is_bounded_and_tells_what_it_forgot() -> None:
    table = _Table(WINDOW, 64)
    values = np.arange(1, 65, dtype=np.uint64)  # four for each of 16 buckets: all find a place
    table.store(values, np.zeros(64, np.int64), values)
    assert table.forgotten == 0
    assert (table.find(values)[0] == 0).all()
    assert (table.find(values)[1] == values).all()
    later = values + np.uint64(64)
    table.store(later[:16], np.full(16, WINDOW), later[:16])  # within the window of what it evicts
    assert table.forgotten == 16
    table.store(later[16:32], np.full(16, 3 * WINDOW), later[:16])  # these were over
    assert table.forgotten == 16
    many = np.arange(1000, 1200, dtype=np.uint64)
    table.store(many, np.full(200, 9 * WINDOW), many)
    kept = int((table.find(many)[0] == 9 * WINDOW).sum())
    assert kept == 64
    assert table.forgotten == 16 + 200 - 64


def test_many_packets_are_remembered() -> None:
    """20,000 packets within the window, then each again: what is missed was told as forgotten."""
    work = Deduplicator(WINDOW, 1)
    packet = bytearray(bytes(PACKETS["udp"]))
    packets = []
    for number in range(20_000):
        packet[18:20] = number.to_bytes(2, "big")
        packets.append(bytes(packet))
    first = batch_of(packets)
    none = np.zeros(len(packets), np.int64)
    assert not work.find(first, none).any()
    missed = 20_000 - int(work.find(first, none).sum())
    assert work.duplicates == 20_000 - missed
    assert missed <= work.forgotten <= 20
