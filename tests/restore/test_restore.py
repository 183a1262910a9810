"""Vector code against obvious scalar code: mixed batches of every kind, hostile columns, edges."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import restore_oracle as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from restore_oracle import TCP, UDP, Packet, Vnet, build

from tunnelbridge.batch import VNET_HEADER, Batch, from_packets
from tunnelbridge.restore.restore import restore


def batch_of(packets: list[Packet], *, gap: int = 0) -> Batch:
    """Lay packets into read-only memory as a ring does, ``gap`` octets of rubbish around each."""
    rubbish = b"\xa5" * gap
    batch = from_packets([rubbish + packet.frame for packet in packets])
    batch.start = batch.start + gap
    batch.length = batch.length - gap
    batch.wire_length = batch.length.copy()
    batch.timestamp = np.arange(len(packets)) * 1000
    batch.direction = np.array([not packet.inbound for packet in packets], np.uint8)
    batch.vlan = np.array([packet.vlan for packet in packets], np.int64)
    batch.vnet = np.array([packet.vnet.row() for packet in packets], VNET_HEADER)
    return batch


def check(packets: list[Packet], *, gap: int = 0) -> None:
    """Compare a restored batch with the oracle, column by column."""
    batch = batch_of(packets, gap=gap)
    before = batch.memory.tobytes()
    columns = [batch.start.copy(), batch.length.copy(), batch.wire_length.copy()]
    result = restore(batch)
    expected = [oracle.restored(packet) for packet in packets]
    frames = [frame for group in expected for frame in group]
    assert [result.batch.octets(i) for i in range(len(result.batch))] == frames
    assert result.index.tolist() == [i for i, group in enumerate(expected) for _ in group]
    assert result.index.dtype == np.int64
    assert result.batch.wire_length.tolist() == [len(frame) for frame in frames]
    assert result.batch.timestamp.tolist() == (result.index * 1000).tolist()
    assert np.array_equal(result.batch.direction, batch.direction[result.index])
    assert result.batch.vlan is None
    assert result.batch.vnet is None
    assert result.unsegmented == sum(
        bool(packet.vnet.gso_type & 0x0F) and oracle.segments(packet) is None for packet in packets
    )
    assert batch.memory.tobytes() == before
    for now, then in zip([batch.start, batch.length, batch.wire_length], columns, strict=True):
        assert np.array_equal(now, then)


def super_packet(
    size: int, version: int = 4, protocol: int = TCP, octets: int = 5000, **more: object
) -> Packet:
    """Return a super-packet with a counting payload."""
    payload = bytes(i % 251 for i in range(octets))
    frame, at = build(version, protocol, payload, **more)  # type: ignore[arg-type]
    gso = UDP_L4 if protocol == UDP else (1 if version == 4 else 4)
    return Packet(frame, Vnet(1, gso, 66, size, at, 16 if protocol == TCP else 6))


UDP_L4 = 5
DOT1Q = 0x8100 << 16
EXTENSIONS = {
    0: b"",
    60: bytes([0, 0, 1, 4, 0, 0, 0, 0]),  # destination options; the next header is filled in
    43: bytes([0, 4, 4, 1, 1, 0, 0, 0]) + bytes(range(32)),  # SRH, one segment left
}


@st.composite
def good_packets(draw: st.DrawFn) -> Packet:
    version = draw(st.sampled_from([4, 6]))
    protocol = draw(st.sampled_from([TCP, UDP]))
    kind = draw(st.sampled_from(["plain", "partial", "super", "super", "received"]))
    size = draw(st.integers(1, 700) | st.sampled_from([1, 2, 3, 511, 1448]))
    octets = draw(st.integers(0, 3000)) if kind == "super" else draw(st.integers(0, 200))
    octets = draw(st.sampled_from([octets, size, size - 1, size + 1, 3 * size, 3 * size + 1]))
    if octets // size > 200:
        octets = 200 * size
    extension = draw(st.sampled_from([0, 0, 60, 43])) if version == 6 else 0
    header = bytes([protocol]) + EXTENSIONS[extension][1:] if extension else b""
    frame, at = build(
        version,
        protocol,
        draw(st.binary(min_size=octets, max_size=octets)),
        tags=draw(st.sampled_from([(), (DOT1Q | 5,), (0x88A8 << 16 | 7, DOT1Q | 0xE001)])),
        options=b"\x01" * draw(st.sampled_from([0, 4, 12, 40])),
        ip_options=b"\x01" * draw(st.sampled_from([0, 0, 4, 40])),
        extensions=header,
        next_header=extension,
        ident=draw(st.sampled_from([0, 1, 0xFFFE, 0xFFFF, 0x1234])),
        sequence=draw(st.sampled_from([0, 1, 2**32 - 1, 2**32 - 1000, 2**31])),
        flags=draw(st.integers(0, 511)),
        fragment=draw(st.sampled_from([0, 0x4000])),
    )
    offset = 16 if protocol == TCP else 6
    gso = UDP_L4 if protocol == UDP else (1 if version == 4 else 4)
    gso |= draw(st.sampled_from([0, 0x80]))
    vnet = {
        "plain": Vnet(draw(st.sampled_from([0, 2]))),
        "partial": Vnet(1, 0, 0, 0, at, offset),
        "super": Vnet(1, gso, draw(st.integers(0, 65535)), size, at, offset),
        "received": Vnet(2, gso, draw(st.integers(0, 65535)), size),
    }[kind]
    tags = [0, DOT1Q | 9, DOT1Q, 0x88A8 << 16 | 0xE000]
    return Packet(frame, vnet, draw(st.sampled_from(tags)), draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(st.lists(good_packets(), max_size=9), st.integers(0, 3))
def test_mixed_batches_match_scalar_code(packets: list[Packet], gap: int) -> None:
    check(packets, gap=gap)


@st.composite
def hostile_packets(draw: st.DrawFn) -> Packet:
    frame = draw(st.one_of(st.binary(max_size=80), good_packets().map(lambda p: p.frame)))
    frame = frame[: draw(st.integers(0, 200))]
    edge = st.one_of(st.integers(0, 65535), st.integers(0, len(frame) + 2))
    vnet = Vnet(
        draw(st.integers(0, 255)),
        draw(st.sampled_from([0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x21, 255])),
        draw(edge),
        draw(edge),
        draw(edge),
        draw(edge),
    )
    return Packet(frame, vnet, draw(st.integers(0, 2**32 - 1)), draw(st.booleans()))


@settings(max_examples=300, deadline=None)
@given(st.lists(hostile_packets(), max_size=6))
def test_whatever_the_columns_hold_nothing_is_raised(packets: list[Packet]) -> None:
    check(packets)


@pytest.mark.parametrize("count", [0, 1, 64, 65])
@pytest.mark.parametrize("gap", [0, 1])
def test_sizes(count: int, gap: int) -> None:
    kinds = [
        super_packet(1448, octets=65000),
        super_packet(1428, version=6, octets=20001),
        super_packet(1001, protocol=UDP, octets=10010),
        Packet(build(payload=b"plain")[0]),
        Packet(build(payload=b"tagged")[0], vlan=DOT1Q | 5),
        Packet((made := build(payload=b"partial"))[0], Vnet(1, 0, 0, 0, made[1], 16), DOT1Q),
    ]
    check([kinds[i % len(kinds)] for i in range(count)], gap=gap)


def test_nothing_to_do_is_the_same_batch() -> None:
    batch = from_packets([b"x" * 60, b"y" * 61])
    result = restore(batch)
    assert result.batch is batch
    assert result.index.tolist() == [0, 1]


def test_plain_packets_keep_their_columns() -> None:
    batch = batch_of([Packet(build(payload=b"a")[0]), Packet(build(payload=b"b")[0])])
    result = restore(batch).batch
    assert result.start is batch.start
    assert result.head.size == 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("octets", [2895, 2896, 2897, 1448, 1449, 1447, 1, 0])
def test_exact_multiple_and_one_beside_it(version: int, octets: int) -> None:
    check([super_packet(1448, version, octets=octets)])


def test_flags_ids_and_sequence_of_a_known_super_packet() -> None:
    packet = super_packet(100, octets=250, ident=0xFFFF, sequence=2**32 - 100, flags=0x99)
    packet.vnet.gso_type |= 0x80
    result = restore(batch_of([packet])).batch
    frames = [result.octets(i) for i in range(3)]
    assert [len(frame) for frame in frames] == [154, 154, 104]
    assert [frame[47] for frame in frames] == [0x90, 0x10, 0x19]  # CWR first, FIN and PSH last
    assert [frame[18:20].hex() for frame in frames] == ["ffff", "0000", "0001"]
    assert [frame[38:42].hex() for frame in frames] == ["ffffff9c", "00000000", "00000064"]
    assert b"".join(frame[54:] for frame in frames) == packet.frame[54:]


@pytest.mark.parametrize("flag", [0x00, 0x10])
def test_accurate_ecn_counts_in_every_segment(flag: int) -> None:
    packet = super_packet(100, octets=250, flags=0x90)
    packet.vnet.gso_type |= flag
    result = restore(batch_of([packet])).batch
    assert [result.octets(i)[47] for i in range(3)] == [0x90, 0x90, 0x90]


@pytest.mark.parametrize("kind", [0x20, 0x40])
def test_flags_of_other_virtio_devices_do_not_hide_the_kind(kind: int) -> None:
    packet = super_packet(100, octets=250)
    packet.vnet.gso_type |= kind  # VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4, _IPV6
    check([packet])


def test_a_tcp_header_shorter_than_its_fields_is_passed_on() -> None:
    packet = super_packet(100, octets=250)
    frame = bytearray(packet.frame)
    frame[packet.vnet.csum_start + 12] = 0x40
    packet.frame = bytes(frame)
    assert restore(batch_of([packet])).unsegmented == 1


def test_a_tag_behind_a_head_that_a_hostile_checksum_made_short() -> None:
    packet = Packet(build(payload=b"odd")[0], Vnet(1, 0, 0, 0, 0, 2), DOT1Q | 5)
    check([packet, packet])


@pytest.mark.parametrize("octets", [2, 4, 11, 12, 13])
def test_partial_checksums_of_frames_too_short_for_addresses(octets: int) -> None:
    packet = Packet(bytes(range(octets)), Vnet(1, 0, 0, 0, 0, 0), DOT1Q | 5)
    check([packet, packet])


def test_received_packets_with_a_fixed_id_keep_it() -> None:
    packet = super_packet(100, octets=250, ident=0)
    for inbound, idents in ((True, [0, 0, 0]), (False, [0, 1, 2])):
        packet.inbound = inbound
        result = restore(batch_of([packet])).batch
        assert [result.octets(i)[19] for i in range(3)] == idents


def checksum_preimage(frame: bytes, at: int, offset: int) -> bytes:
    """Choose the last two octets so that the sum from ``at`` is 0xffff: its complement is 0."""
    octets = bytearray(frame)
    octets[-2:] = b"\0\0"
    value = 0xFFFF - oracle.ones_sum(bytes(octets[at:]))
    octets[-2:] = struct.pack(">H", value)
    return bytes(octets)


@pytest.mark.parametrize(("protocol", "offset"), [(TCP, 16), (UDP, 6)])
def test_a_partial_checksum_is_never_stored_as_zero(protocol: int, offset: int) -> None:
    frame, at = build(4, protocol, bytes(20))
    packet = Packet(checksum_preimage(frame, at, offset), Vnet(1, 0, 0, 0, at, offset))
    result = restore(batch_of([packet])).batch.octets(0)
    assert result[at + offset :][:2] == b"\xff\xff"
    check([packet])


@pytest.mark.parametrize(("protocol", "offset", "zero"), [(TCP, 16, "0000"), (UDP, 6, "ffff")])
def test_a_segment_whose_checksum_is_zero(protocol: int, offset: int, zero: str) -> None:
    def frame_with(tail: bytes) -> Packet:
        frame, at = build(4, protocol, bytes(98) + tail + bytes(50), flags=0x10)
        kind = 1 if protocol == TCP else UDP_L4
        return Packet(frame, Vnet(1, kind, 0, 100, at, offset))

    packet = frame_with(b"\0\0")
    at = packet.vnet.csum_start
    first = oracle.restored(packet)[0]
    packet = frame_with(first[at + offset :][:2])  # adding the complement makes the sum 0xffff
    result = restore(batch_of([packet])).batch.octets(0)
    assert result[at + offset :][:2].hex() == zero
    check([packet])


def test_a_super_packet_cut_by_a_snap_length_keeps_its_lengths() -> None:
    batch = batch_of([super_packet(1000, octets=3500)])
    whole = restore(batch).batch
    batch.length = batch.length - 2000  # 1500 octets of payload are left
    cut = restore(batch).batch
    assert cut.wire_length.tolist() == whole.wire_length.tolist() == [1054, 1054, 1054, 554]
    assert cut.total_length.tolist() == [1054, 554, 54, 54]
    assert cut.octets(0) == whole.octets(0)
    assert cut.octets(1)[:50] == whole.octets(1)[:50]  # all but the checksum, which none can know


def test_a_partial_packet_cut_by_a_snap_length_keeps_its_field() -> None:
    frame, at = build(payload=bytes(100))
    batch = batch_of([Packet(frame, Vnet(1, 0, 0, 0, at, 16))])
    batch.length = batch.length - 10
    assert restore(batch).batch.octets(0) == frame[:-10]


@pytest.mark.parametrize("kind", [3, 2, 0x83, 0x0F])
def test_unknown_kinds_of_super_packets_are_counted_and_passed_on(kind: int) -> None:
    packet = super_packet(100, octets=250)
    packet.vnet.gso_type = kind
    packet.vlan = DOT1Q | 3
    result = restore(batch_of([packet]))
    assert result.unsegmented == 1
    assert result.batch.octets(0) == oracle.tagged(packet.frame, packet.vlan)


def test_a_stack_of_too_many_tags_is_passed_on() -> None:
    packet = super_packet(100, octets=250, tags=(DOT1Q,) * 9)
    assert restore(batch_of([packet])).unsegmented == 1
    assert restore(batch_of([super_packet(100, octets=250, tags=(DOT1Q,) * 8)])).unsegmented == 0


def test_big_tcp_ipv4_gets_lengths() -> None:
    check([super_packet(1448, octets=150_000)])


def test_big_tcp_ipv6_loses_its_jumbo_header() -> None:
    jumbo = struct.pack(">BBBBI", TCP, 0, 0xC2, 4, 150_028)
    with_it = super_packet(1428, 6, octets=150_000, extensions=jumbo, next_header=0)
    without = super_packet(1428, 6, octets=150_000)
    plain = super_packet(1000, 6, octets=5000)
    batch = batch_of([plain, with_it, with_it, plain])
    expected = [f for p in (plain, without, without, plain) for f in oracle.restored(p)]
    result = restore(batch).batch
    assert [result.octets(i) for i in range(len(result))] == expected
