"""Batches through the whole sender: every frame ends in one bucket, and leaves as it is on the wire."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import outer
import pytest
import recording
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.erspan import ERSPAN_II
from scapy.layers.l2 import GRE

from tunnelbridge.batch import VNET_HEADER, Batch, from_packets
from tunnelbridge.clone.guard import LoopGuard, Signature
from tunnelbridge.ledger import TunnelLedger
from tunnelbridge.linux.libpcap import compile_filter
from tunnelbridge.tunnel import Frames, Outcome
from tunnelbridge.wire.layer import Kind

sys.path.insert(0, str(Path(__file__).parent / "restore"))

import restore_oracle as oracle
from restore_oracle import TCP, UDP, Packet, Vnet, build

GRE_TUNNEL = "gre://192.0.2.9"
OWN = Signature("192.0.2.9", Kind.GRE)
DOT1Q = 0x8100 << 16


def web(number: int, tags: tuple[int, ...] = ()) -> bytes:
    """Return an IPv4 TCP frame that differs from others by its number."""
    return outer.frame(
        outer.ipv4(outer.tcp(number.to_bytes(8), 40000 + number, 80), 6, "10.0.0.1", "10.0.0.2"),
        *tags,
    )


def dns(number: int) -> bytes:
    packet = outer.ipv4(outer.udp(number.to_bytes(8), 40000, 53), 17, "10.0.0.1", "10.0.0.2")
    return outer.frame(packet)


def own_tunnel(inner: bytes) -> bytes:
    """Return a frame of the tunnel itself, which must not be cloned."""
    gre = bytes.fromhex("00006558") + inner
    return outer.frame(outer.ipv4(gre, 47, "192.0.2.1", "192.0.2.9"))


def ring_batch(packets: list[Packet]) -> Batch:
    """Lay packets into read-only memory as a ring does."""
    batch = from_packets([packet.frame for packet in packets])
    batch.vlan = np.array([packet.vlan for packet in packets], np.int64)
    batch.vnet = np.array([packet.vnet.row() for packet in packets], VNET_HEADER)
    return batch


def super_packet(version: int, protocol: int, octets: int, size: int, vlan: int = 0) -> Packet:
    frame, at = build(version, protocol, bytes(number % 251 for number in range(octets)))
    kind = 5 if protocol == UDP else (1 if version == 4 else 4)
    return Packet(frame, Vnet(1, kind, 66, size, at, 16 if protocol == TCP else 6), vlan)


def partial(version: int, protocol: int, payload: bytes, vlan: int = 0) -> Packet:
    """Return a packet whose checksum the kernel left to a network card."""
    frame, at = build(version, protocol, payload)
    return Packet(frame, Vnet(1, 0, 0, 0, at, 16 if protocol == TCP else 6), vlan)


class Eavesdropper:
    """Stands in for a tunnel: keeps the frames it is given, columns and all."""

    def __init__(self) -> None:
        self.ledger = TunnelLedger("eavesdropper")
        self.seen: list[Frames] = []

    def send(self, frames: Frames) -> Outcome:
        self.seen.append(frames)
        self.ledger.clones += len(frames.batch)
        self.ledger.sent += len(frames.batch)
        return Outcome(len(frames.batch), len(frames.batch), 0, 0, 0)

    def close(self) -> None:
        """Nothing is open."""


versions, protocols = st.sampled_from([4, 6]), st.sampled_from([TCP, UDP])
vlans = st.sampled_from([0, 0, DOT1Q | 100, DOT1Q, 0x88A8 << 16 | 0xE007])
packets = st.one_of(
    st.binary(max_size=13).map(Packet),
    st.builds(Packet, st.binary(min_size=14, max_size=100), st.just(Vnet()), vlans),
    st.builds(partial, versions, protocols, st.binary(max_size=60), vlans),
    st.builds(super_packet, versions, protocols, st.integers(1, 900), st.integers(50, 400), vlans),
    st.builds(lambda n, tags: Packet(web(n, tags)), st.integers(0, 9), st.sampled_from([(), (7,)])),
    st.just(Packet(own_tunnel(web(1)))),
)


@settings(deadline=None)
@given(st.lists(st.lists(packets, max_size=6), max_size=4))
def test_every_frame_ends_in_one_bucket(batches: list[list[Packet]]) -> None:
    tunnels, socks = zip(
        recording.tunnel(GRE_TUNNEL, mtu=300),
        recording.tunnel("vxlan://192.0.2.8", "drop", mtu=300),
        recording.tunnel("gre-ip://192.0.2.7", "truncate", mtu=300),
        strict=True,
    )
    pipeline = recording.pipeline(list(tunnels), LoopGuard([OWN]))
    ledger = pipeline.ledger
    expected: list[bytes] = []
    total: Counter[str] = Counter()

    for each in batches:
        batch = ring_batch(each)
        batch.memory.flags.writeable = False
        pipeline.process(batch)

        total["received"] += len(each)
        for packet in each:
            if len(packet.frame) < 14:
                total["frame-short"] += 1
            elif packet.frame == own_tunnel(web(1)):
                total["own-tunnel"] += 1
            else:
                total["cloned"] += 1
                expected += oracle.restored(packet)
        assert ledger.balances()
        assert ledger.received == total["received"]
        assert ledger.cloned == total["cloned"]
        assert ledger.refused["frame-short"] == total["frame-short"]
        assert ledger.refused["own-tunnel"] == total["own-tunnel"]
        assert ledger.segments == len(expected)

    assert [packet[4:] for packet in socks[0].packets] == expected
    fitting = [frame for frame in expected if len(frame) + 36 <= 300]
    assert [packet[16:] for packet in socks[1].packets] == fitting
    bare = [frame[recording.mac_header(frame)[2] :] for frame in expected
            if recording.mac_header(frame)[0] in (0x0800, 0x86DD)]  # fmt: skip
    assert [packet[4:] for packet in socks[2].packets] == [packet[:276] for packet in bare]


@settings(deadline=None)
@given(st.lists(packets, max_size=9))
def test_what_is_told_of_each_frame(each: list[Packet]) -> None:
    listener = Eavesdropper()
    pipeline = recording.pipeline([listener], LoopGuard([]))

    pipeline.process(ring_batch(each))

    for frames in listener.seen:
        batch = frames.batch
        octets = [batch.octets(number) for number in range(len(batch))]
        told = zip(frames.ethertype, frames.tag, frames.header_length, strict=True)
        assert [tuple(map(int, each)) for each in told] == list(map(recording.mac_header, octets))
        assert len(frames.entropy) == len(octets)
        assert batch.wire_length.tolist() == list(map(len, octets))


def test_both_directions_and_all_segments_of_a_flow_hash_alike() -> None:
    there = outer.frame(outer.ipv4(outer.tcp(b"", 40000, 80), 6, "10.0.0.1", "10.0.0.2"))
    back = outer.frame(outer.ipv4(outer.tcp(b"", 80, 40000), 6, "10.0.0.2", "10.0.0.1"))
    large = super_packet(4, TCP, 1000, 100)  # the same endpoints
    other = outer.frame(outer.ipv4(outer.tcp(b"", 40001, 80), 6, "10.0.0.1", "10.0.0.2"))
    listener = Eavesdropper()

    recording.pipeline([listener], LoopGuard([])).process(
        ring_batch([Packet(b"short"), Packet(other), Packet(there), large, Packet(back)])
    )

    entropy = listener.seen[0].entropy.tolist()
    assert len(entropy) == 1 + 1 + 10 + 1
    assert len(set(entropy[1:])) == 1
    assert entropy[0] != entropy[1]


@pytest.mark.parametrize("count", [0, 1, 256, 257])
def test_sizes(count: int) -> None:
    tunnel, sock = recording.tunnel(GRE_TUNNEL)
    pipeline = recording.pipeline([tunnel], LoopGuard([OWN]))
    sent = [web(number) for number in range(count)]

    pipeline.process(from_packets(sent))
    pipeline.process(from_packets([]))

    assert [packet[4:] for packet in sock.packets] == sent
    assert pipeline.ledger.cloned == pipeline.ledger.segments == count
    assert pipeline.ledger.balances()


@pytest.mark.parametrize("nothing", [b"short", own_tunnel(web(1))], ids=["short", "own"])
def test_a_batch_of_which_nothing_remains(nothing: bytes) -> None:
    tunnel, sock = recording.tunnel(GRE_TUNNEL)
    pipeline = recording.pipeline([tunnel], LoopGuard([OWN]))

    pipeline.process(from_packets([nothing, nothing]))
    pipeline.process(ring_batch([Packet(nothing), Packet(nothing)]))

    assert sock.packets == []
    assert pipeline.ledger.refused.total() == 4
    assert pipeline.ledger.cloned == 0
    assert pipeline.ledger.balances()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("wds"), max_size=5), max_size=6),
    st.integers(1, 12),
    st.booleans(),
)
def test_the_count_is_exact(batches: list[list[str]], limit: int, has_filter: bool) -> None:
    tunnel, sock = recording.tunnel(GRE_TUNNEL)
    program = compile_filter("tcp") if has_filter else None
    pipeline = recording.pipeline([tunnel], LoopGuard([OWN]), program=program, limit=limit)
    made = {"w": web(1), "d": dns(1), "s": b"short"}
    cloneable = "w" if has_filter else "wd"
    wanted = [made[kind] for batch in batches for kind in batch if kind in cloneable]

    for batch in batches:
        pipeline.process(from_packets([made[kind] for kind in batch]))
        assert pipeline.ledger.balances()
        assert pipeline.is_done == (pipeline.ledger.cloned == limit)

    assert [packet[4:] for packet in sock.packets] == wanted[:limit]
    assert pipeline.ledger.cloned == min(limit, len(wanted))


def test_the_filter_takes_what_libpcap_takes() -> None:
    tunnel, sock = recording.tunnel(GRE_TUNNEL)
    pipeline = recording.pipeline([tunnel], LoopGuard([OWN]), program=compile_filter("udp port 53"))

    pipeline.process(from_packets([web(1), dns(1), b"short", web(2), dns(2)]))
    pipeline.process(from_packets([web(1)]))

    assert [packet[4:] for packet in sock.packets] == [dns(1), dns(2)]
    assert pipeline.ledger.not_matched == 3
    assert pipeline.ledger.refused == Counter({"frame-short": 1})
    assert pipeline.ledger.balances()


def test_the_flow_columns_stay_with_their_frames_behind_filter_and_guard() -> None:
    listener = Eavesdropper()
    pipeline = recording.pipeline(
        [listener], LoopGuard([OWN]), program=compile_filter("tcp or proto 47 or vlan")
    )
    tagged = outer.frame(outer.ipv6(outer.udp(b"", 1, 2), 17, "2001:db8::1", "2001:db8::2"), 7)
    kept = [web(1), tagged, web(2)]

    pipeline.process(
        from_packets([b"short", kept[0], dns(1), own_tunnel(web(1)), kept[1], dns(2), kept[2]])
    )

    (frames,) = listener.seen
    assert frames.ethertype.tolist() == [0x0800, 0x86DD, 0x0800]
    assert frames.tag.tolist() == [0, DOT1Q | 7, 0]
    assert frames.header_length.tolist() == [14, 18, 14]


def test_snaplen_counts_from_the_frame_on_the_wire() -> None:
    tunnel, sock = recording.tunnel("erspan2://192.0.2.9", mac=b"\x02\0\0\0\0\x09")
    pipeline = recording.pipeline([tunnel], LoopGuard([OWN]), snaplen=100)
    tagged = Packet(web(1), vlan=DOT1Q | 0x2064)
    large = super_packet(4, TCP, 1000, 400, DOT1Q | 7)

    pipeline.process(ring_batch([tagged, large]))

    whole = [oracle.tagged(web(1), tagged.vlan), *oracle.restored(large)]
    assert [packet[16:] for packet in sock.packets] == [
        b"\x02\0\0\0\0\x09" + frame[6:100] for frame in whole
    ]
    headers = [GRE(packet)[ERSPAN_II] for packet in sock.packets]
    assert [header.t for header in headers] == [0, 1, 1, 1]
    assert [(header.vlan, header.cos, header.en) for header in headers] == [(100, 1, 3)] + [
        (7, 0, 3)
    ] * 3
    assert tunnel.ledger.truncated == 3
    assert pipeline.ledger.balances()


def test_what_the_capture_had_cut_stays_marked() -> None:
    tunnel, sock = recording.tunnel("erspan2://192.0.2.9")
    batch = from_packets([web(1), web(2)])
    batch.length[0] -= 4

    recording.pipeline([tunnel], LoopGuard([OWN])).process(batch)

    assert [GRE(packet)[ERSPAN_II].t for packet in sock.packets] == [1, 0]
    assert tunnel.ledger.truncated == 1


def test_every_tunnel_gets_every_clone_whatever_the_others_do() -> None:
    texts = ["gre-ip://192.0.2.7", GRE_TUNNEL, "erspan2://192.0.2.6", "vxlan://192.0.2.8"]
    pairs = [recording.tunnel(text) for text in texts]
    pairs[1][1].fate = lambda _: "no-route"
    pipeline = recording.pipeline([tunnel for tunnel, _ in pairs], LoopGuard([OWN]))
    sent = [web(number) for number in range(5)]

    pipeline.process(from_packets(sent))

    assert [packet[4:] for packet in pairs[0][1].packets] == [frame[14:] for frame in sent]
    for (_, sock), octets in zip(pairs[1:], (4, 16, 16), strict=True):
        assert [packet[octets:] for packet in sock.packets] == sent
    assert pipeline.ledger.tunnels[1].errors == Counter({"no-route": 5})
    assert pipeline.ledger.balances()


def test_a_super_packet_that_cannot_be_cut_is_counted_and_passed_on() -> None:
    tunnel, sock = recording.tunnel(GRE_TUNNEL)
    pipeline = recording.pipeline([tunnel], LoopGuard([OWN]))
    frame = super_packet(4, TCP, 500, 100).frame

    pipeline.process(ring_batch([Packet(frame, Vnet(0, 3, 0, 100, 0, 0))]))  # 3: UFO

    assert [packet[4:] for packet in sock.packets] == [frame]
    assert pipeline.ledger.unsegmented == 1
    assert pipeline.ledger.segments == 1
