"""What the health report says of conversations of which the mirror lost known parts."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from collector.delivery import Delivery
from collector.health import MirrorHealth, lots
from tunnelbridge.batch import from_packets

SECOND = 10**9
ETHER = Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b")
"""With addresses, or scapy would go and look for them."""


def deliver(packets: Iterable[Any], time: int = 10**18, step: int = 1000) -> Delivery:
    batch = from_packets([bytes(packet) for packet in packets])
    count = len(batch)
    batch.timestamp = time + np.arange(count) * step
    return Delivery(
        batch, np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, bool)
    )


def report(packets: Iterable[Any], split: int | None = None, **told: Any) -> dict[str, Any]:
    """Return the report after the packets came in batches of ``split``."""
    packets, health = list(packets), MirrorHealth(1)
    for first in range(0, len(packets), split or max(len(packets), 1)):
        health.take(
            deliver(packets[first : first + (split or len(packets))], 10**18 + first * 1000)
        )
        if split:
            health.settle()
    return health.as_dict()


class Conversation:
    """A TCP connection as both ends see it; every packet as (who sent it, frame)."""

    def __init__(self, port: int = 40000, six: bool = False, first: int = 1000) -> None:
        self.port, self.six = port, six
        self.next = {"a": first, "b": (first + 0x7000_0000) % (1 << 32)}
        self.packets: list[tuple[str, Packet]] = []
        self.number = port

    def send(self, who: str, size: int = 0, flags: str = "A") -> int:
        """Send a segment; return its place."""
        other = "b" if who == "a" else "a"
        ends = ("2001:db8::1", "2001:db8::2") if self.six else ("192.0.2.1", "198.51.100.2")
        source, destination = ends if who == "a" else ends[::-1]
        ports = (self.port, 443) if who == "a" else (443, self.port)
        self.number += 1
        ip = (
            IPv6(src=source, dst=destination)
            if self.six
            else IP(src=source, dst=destination, id=self.number & 0xFFFF or 1)
        )
        ack = self.next[other] if "A" in flags else 0
        tcp = TCP(sport=ports[0], dport=ports[1], seq=self.next[who], ack=ack, flags=flags)
        self.packets.append((who, ETHER / ip / tcp / Raw(bytes(size))))
        self.next[who] = (self.next[who] + size + ("S" in flags) + ("F" in flags)) % (1 << 32)
        return len(self.packets) - 1

    def open(self) -> None:
        self.send("a", flags="S")
        self.send("b", flags="SA")
        self.send("a")

    def close(self) -> None:
        self.send("a", flags="FA")
        self.send("b", flags="FA")
        self.send("a")

    @property
    def frames(self) -> list[Packet]:
        return [frame for _, frame in self.packets]

    def without(self, *places: int) -> list[Packet]:
        return [frame for number, frame in enumerate(self.frames) if number not in places]


def talk(rounds: int = 4, **kind: Any) -> Conversation:
    conversation = Conversation(**kind)
    conversation.open()
    for size in range(100, 100 + rounds):
        conversation.send("a", size)
        conversation.send("b", 2 * size)
    conversation.send("a")
    conversation.close()
    return conversation


@pytest.mark.parametrize("split", [None, 1, 2, 7])
@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("first", [1000, (1 << 32) - 150])
def test_a_healthy_mirror(split: int | None, six: bool, first: int) -> None:
    conversation = talk(six=six, first=first)
    found = report(conversation.frames, split)
    count = len(conversation.frames)
    assert found == {
        "frames": count, "truncated": 0, "sample": 1, "sampled_frames": count,
        "flows": 1, "one_direction": 0, "tcp_flows": 1, "tcp_one_direction": 0,
        "tcp_without_syn": 0, "tcp_octets": 3 * (100 + 101 + 102 + 103), "acked_unseen_octets": 0,
        "checked_checksums": count, "bad_checksums": 0, "suspected_duplicates": 0,
    }  # fmt: skip


@pytest.mark.parametrize("split", [None, 1, 3])
@pytest.mark.parametrize("who", ["a", "b"])
def test_one_direction_only(who: str, split: int | None) -> None:
    found = report((frame for sender, frame in talk().packets if sender == who), split)
    assert (found["flows"], found["one_direction"], found["tcp_one_direction"]) == (1, 1, 1)
    assert found["acked_unseen_octets"] == 0  # of a side of which nothing came nothing is claimed


def test_who_never_answered_is_no_fault_of_the_mirror() -> None:
    scan = [
        ETHER / IP(src="192.0.2.9", dst="192.0.2.1") / TCP(sport=5, dport=port, flags="S")
        for port in range(30)
    ]
    found = report(scan)
    assert (found["tcp_flows"], found["tcp_one_direction"], found["tcp_without_syn"]) == (30, 0, 0)


def test_udp_both_ways_and_one_way() -> None:
    def datagram(source: str, destination: str, sport: int, dport: int) -> Packet:
        ip = IP(src=source, dst=destination, id=sport)
        return ETHER / ip / UDP(sport=sport, dport=dport) / Raw(b"x")

    pair = [datagram("192.0.2.1", "192.0.2.2", 9, 53), datagram("192.0.2.2", "192.0.2.1", 53, 9)]
    syslog = [datagram("192.0.2.3", "192.0.2.2", 7, 514)]
    found = report(pair + syslog)
    assert (found["flows"], found["one_direction"], found["tcp_flows"]) == (2, 1, 0)


@pytest.mark.parametrize("split", [None, 1])
def test_connections_without_their_beginning(split: int | None) -> None:
    whole, middle = talk(port=40000), talk(port=40001)
    found = report(whole.frames + middle.without(0, 1), split)
    assert (found["tcp_flows"], found["tcp_without_syn"]) == (2, 1)


@pytest.mark.parametrize("split", [None, 1, 2, 5])
@pytest.mark.parametrize("six", [False, True])
def test_what_was_acknowledged_and_not_seen(split: int | None, six: bool) -> None:
    conversation = talk(rounds=6, six=six, first=(1 << 32) - 250)
    lost = [each for each in (4, 5, 8) if len(conversation.frames[each].payload.payload.payload)]
    octets = sum(len(bytes(conversation.frames[each][TCP].payload)) for each in lost)
    found = report(conversation.without(*lost), split)
    assert (len(lost), found["acked_unseen_octets"]) == (3, octets)


def test_a_hole_nobody_acknowledged_is_the_networks() -> None:
    conversation = Conversation()
    conversation.open()
    conversation.send("a", 100)
    lost = conversation.send("a", 1000)
    conversation.send("a", 100)
    found = report(conversation.without(lost))
    assert found["acked_unseen_octets"] == 0
    conversation.send("b")  # which acknowledges all of it
    assert report(conversation.without(lost))["acked_unseen_octets"] == 1000


@pytest.mark.parametrize("split", [None, 1])
def test_retransmissions_and_late_segments_fill_holes(split: int | None) -> None:
    conversation = Conversation()
    conversation.open()
    places = [conversation.send("a", 500) for _ in range(5)]
    conversation.send("b")
    frames = conversation.frames
    late = [
        *frames[: places[1]],
        *frames[places[2] : places[4]],
        frames[places[1]],
        *frames[places[4] :],
    ]
    assert report(late, split)["acked_unseen_octets"] == 0
    again = frames[places[3]].copy()
    again[IP].id = 9
    again[IP].chksum = None
    assert report([*frames, again], split)["acked_unseen_octets"] == 0


def test_resets_and_reused_ports_are_no_holes() -> None:
    first, second = talk(), talk(first=3_000_000_000)
    frames = first.frames
    reset = ETHER / IP(src="192.0.2.1", dst="198.51.100.2") / TCP(
        sport=40000, dport=443, flags="R", seq=5_000
    )  # fmt: skip
    assert report([*frames, reset, *second.frames])["acked_unseen_octets"] == 0
    wild = reset.copy()
    wild[TCP].flags, wild[TCP].ack = "RA", (first.next["b"] + 5000) % (1 << 32)
    wild[IP].chksum = wild[TCP].chksum = None
    assert report([*frames, wild])["acked_unseen_octets"] == 0
    # the same without a SYN: a jump of a gigabyte is another connection
    assert report(frames + second.frames[3:], 1)["acked_unseen_octets"] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1400), st.booleans()), max_size=40),
    st.integers(0, (1 << 32) - 1),
    st.integers(1, 50),
)
def test_lost_octets_are_counted_exactly(
    steps: list[tuple[str, int, bool]], first: int, split: int
) -> None:
    """Without retransmissions the estimate is exact: what was dropped and later acknowledged."""
    conversation = Conversation(first=first)
    conversation.open()
    lost, octets = [], 0
    for who, size, is_lost in steps:
        place = conversation.send(who, size)
        if is_lost:
            lost.append(place)
            octets += size
    for who in "abab":  # acknowledges all
        conversation.send(who)
    assert report(conversation.without(*lost), split)["acked_unseen_octets"] == octets


def test_many_flows_at_once_are_kept_apart() -> None:
    generator = random.Random(4)
    talks = [talk(port=30000 + number) for number in range(60)]
    queues = [list(each.frames) for each in talks]
    octets = 0
    for number in range(0, 60, 3):
        octets += len(bytes(queues[number][5][TCP].payload))
        del queues[number][5]
    mixed = []
    while any(queues):
        mixed.append(generator.choice([each for each in queues if each]).pop(0))
    found = report(mixed, 97)
    assert (found["flows"], found["tcp_without_syn"], found["one_direction"]) == (60, 0, 0)
    assert found["acked_unseen_octets"] == octets


def test_bad_checksums_of_every_kind() -> None:
    ip, six = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
    data = Raw(b"odd")
    good = [
        ETHER / ip / UDP() / data, ETHER / ip / TCP() / data, ETHER / six / UDP() / data,
        ETHER / six / TCP() / data, ETHER / Dot1Q(vlan=4) / ip / TCP() / data,
        ETHER / ip / UDP(chksum=0) / data, ETHER / ip / ICMP() / data,
        ETHER / IP(src="192.0.2.1", dst="192.0.2.2", options=[b"\x94\x04\0\0"]) / TCP() / data,
    ]  # fmt: skip
    bad = [
        ETHER / IP(src="192.0.2.1", dst="192.0.2.2", chksum=1) / UDP() / data,
        ETHER / ip / UDP(chksum=7) / data, ETHER / ip / TCP(chksum=7) / data,
        ETHER / six / UDP(chksum=7) / data, ETHER / six / TCP(chksum=7) / data,
        ETHER / six / UDP(chksum=0) / data,  # not allowed in IPv6 (RFC 8200 §8.1)
    ]  # fmt: skip
    unchecked = [
        ETHER / ARP(),
        bytes(ETHER / ip / TCP() / Raw(bytes(99)))[:80],  # cut
    ]
    found = report([*good, *bad, *unchecked])
    assert (found["checked_checksums"], found["bad_checksums"]) == (len(good) + len(bad), len(bad))


def test_fragments_have_no_checksum_of_their_own() -> None:
    whole = IP(src="192.0.2.1", dst="192.0.2.2", id=5) / UDP() / Raw(bytes(3000))
    found = report([ETHER / each for each in whole.fragment(1000)])
    assert (found["checked_checksums"], found["bad_checksums"], found["flows"]) == (4, 0, 0)


def test_duplicates_and_truncated_frames_are_counted() -> None:
    packet = ETHER / IP(src="192.0.2.1", dst="192.0.2.2", id=5, ttl=9) / UDP() / Raw(b"x")
    routed = ETHER / IP(src="192.0.2.1", dst="192.0.2.2", id=5, ttl=8) / UDP() / Raw(b"x")
    delivery = deliver([packet, routed, packet])
    delivery.truncated[:] = [False, True, True]
    health = MirrorHealth(1)
    health.take(delivery)
    found = health.as_dict()
    assert (found["suspected_duplicates"], found["truncated"], found["frames"]) == (2, 2, 3)
    assert found["checked_checksums"] == 1


def test_octets_of_cut_segments_were_seen() -> None:
    """A snap length is no hole: lengths are those of the IP headers."""
    frames = [bytes(frame)[:60] for frame in talk().frames]
    found = report(frames)
    assert (found["acked_unseen_octets"], found["tcp_octets"]) == (0, 3 * (100 + 101 + 102 + 103))


def test_nothing_came() -> None:
    health = MirrorHealth(1)
    health.take(deliver([]))
    assert set(health.as_dict().values()) == {0, 1}  # one in one


def test_frames_with_heads_are_read_too() -> None:
    """Bare IP behind synthetic MAC headers, and tags that were put back."""
    frames = [bytes(frame) for frame in talk().frames]
    for kind in ("bare", "tagged"):
        cut = 14 if kind == "bare" else 12
        batch = from_packets([frame[cut:] for frame in frames])
        heads = [frame[:cut] + (b"" if kind == "bare" else b"\x81\0\0\x07") for frame in frames]
        batch.head = np.frombuffer(b"".join(heads), np.uint8)
        batch.head_length = np.array([len(head) for head in heads])
        batch.head_start = np.cumsum(batch.head_length) - batch.head_length
        count = len(frames)
        batch.timestamp = 10**18 + np.arange(count)
        none = np.zeros(count, np.int64)
        health = MirrorHealth(1)
        health.take(Delivery(batch, none, none, np.zeros(count, bool)))
        found = health.as_dict()
        assert (found["flows"], found["bad_checksums"], found["acked_unseen_octets"]) == (1, 0, 0)
        assert found["checked_checksums"] == count
        whole = from_packets(
            [head + frame[cut:] for head, frame in zip(heads, frames, strict=True)]
        )
        assert lots(batch).tolist() == lots(whole).tolist()


def test_all_packets_of_a_flow_draw_the_same() -> None:
    for kind in ({}, {"six": True}):
        frames = talk(**kind).frames  # type: ignore[arg-type]
        tagged = [ETHER / Dot1AD(vlan=3) / Dot1Q(vlan=4) / frame.payload for frame in frames]
        drawn = lots(from_packets([bytes(each) for each in frames + tagged]))
        assert len(set(drawn.tolist())) == 1
    other = lots(from_packets([bytes(talk(port=port).frames[0]) for port in range(1000, 1400)]))
    for bit in range(8):  # and flows differ, about evenly in each bit
        assert 140 < int(((other >> np.uint64(bit)) & np.uint64(1)).sum()) < 260
    assert lots(from_packets([bytes(ETHER / ARP())])).tolist() == [(1 << 64) - 1]


def test_the_sample_gets_smaller_under_load_and_stays_whole_flows() -> None:
    talks = [talk(port=20000 + number).frames for number in range(400)]
    health = MirrorHealth(1, budget=1000)
    frames = [frames[place] for place in range(len(talks[0])) for frames in talks]
    for first in range(0, len(frames), 600):
        health.take(deliver(frames[first : first + 600], 10**18 + first, 1))
    found = health.as_dict()
    assert found["sample"] > 1
    assert found["frames"] == len(frames)
    assert found["sampled_frames"] < len(frames) // 2
    drawn = lots(from_packets([bytes(each[0]) for each in talks]))
    expected = int((drawn % np.uint64(found["sample"]) == 0).sum())
    assert 0 < found["flows"] == expected
    assert (found["tcp_without_syn"], found["one_direction"], found["acked_unseen_octets"]) == (
        0,
        0,
        0,
    )


def test_a_quiet_second_after_another_is_read_whole() -> None:
    health = MirrorHealth(1, budget=100)
    frames = talk(rounds=20).frames
    for second in range(5):
        health.take(deliver(frames, (10**9 + second) * SECOND))
        health.settle()
    assert health.as_dict()["sample"] == 1


def test_idle_flows_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from collector import flow_health

    health = MirrorHealth(1)
    health._flows = flow_health.FlowTable(most=8)
    for number in range(5):  # four flows each, later by more than their idle time
        frames = [frame for each in range(4) for frame in talk(port=10 * number + each + 1).frames]
        health.take(deliver(frames, 10**18 + number * 2 * flow_health.IDLE))
        health.settle()
    found = health.as_dict()
    assert (found["sample"], found["flows"], found["tcp_without_syn"]) == (1, 20, 0)
    middle = [frame for each in range(4) for frame in talk(port=900 + each).without(0, 1)]
    health.take(deliver(middle, 10**18 + 20 * flow_health.IDLE))
    found = health.as_dict()
    assert (found["flows"], found["tcp_without_syn"], found["acked_unseen_octets"]) == (24, 4, 0)
    frames = [frame for each in range(30) for frame in talk(port=500 + each).frames]
    health.take(deliver(frames, 10**18))
    found = health.as_dict()
    assert found["sample"] > 1
    assert found["flows"] <= 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=14, max_size=120), max_size=8), st.data())
def test_any_octets_are_only_counted(frames: list[bytes], data: st.DataObject) -> None:
    spoiled = []
    for frame in frames:
        kind = data.draw(st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00\x00"]))
        spoiled.append(frame[:12] + kind + frame[15:])
    spoiled = [each for each in spoiled if len(each) >= 14]
    assert report(spoiled)["frames"] == len(spoiled)
