"""The breaker: loops that hide behind translated addresses end; overlays are left alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from ipaddress import ip_address

import outer
import pytest
from test_guard import TUNNELS, WEB

from tunnelbridge.batch import from_packets
from tunnelbridge.clone.breaker import SLOTS
from tunnelbridge.clone.guard import LoopGuard, Signature
from tunnelbridge.wire.encapsulation import gre_teb, vxlan_tunnel
from tunnelbridge.wire.flow import read_flows
from tunnelbridge.wire.reasons import Reason

REMOTE = {4: "198.51.100.9", 6: "2001:db8:9::9"}
TRANSLATED = {4: ("192.0.2.77", "198.51.100.77"), 6: ("2001:db8::77", "2001:db8:9::77")}


_rubbish = itertools.cycle(bytes([octet]) * 32 for octet in (0xA5, 0x00, 0xFF, 0x5A))


def check(guard: LoopGuard, frames: list[bytes]) -> list[bool]:
    """Return which frames of a batch are cloned; what lies between them is new each time."""
    rubbish = next(_rubbish)
    batch = from_packets([frame + rubbish for frame in frames])
    batch.length = batch.length - len(rubbish)
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    reason = guard.check(batch, flows).reason
    assert set(reason.tolist()) <= {0, Reason.LOOP_BREAKER}
    return [not code for code in reason.tolist()]


def original(number: int, version: int = 4, octets: int = 100) -> bytes:
    """Return one of many frames."""
    segment = outer.tcp(bytes(octets), 1024 + number % 60000, 80, number)
    if version == 4:
        return outer.frame(outer.ipv4(segment, 6, "10.0.0.1", "10.0.0.2", number % 65536))
    return outer.frame(outer.ipv6(segment, 6, "2001:db8:a::1", "2001:db8:b::1"))


def armed(tunnel_kind: str, version: int) -> LoopGuard:
    """Return a guard that has seen a tunnelled frame and knows our tunnel's untranslated remote."""
    stack = TUNNELS[tunnel_kind][0]()
    guard = LoopGuard([Signature(REMOTE[version], stack.kind, stack.port, stack.identifier)])
    packet = outer.tunnelled(gre_teb(99, False, False), WEB, "10.9.9.1", "10.9.9.2")
    assert check(guard, [outer.frame(packet)]) == [True]
    assert guard.breaker.armed
    return guard


def loop(
    guard: LoopGuard,
    tunnel_kind: str,
    version: int,
    frames: list[bytes],
    restored: Callable[[bytes], bytes] = bytes,
    **more: int,
) -> int:
    """Let each frame come back until it is refused; return the most clones an original had.

    ``restored`` makes an original what its clone is: the guard sees what the kernel left undone.
    """
    clones = [0] * len(frames)
    alive = dict(enumerate(frames))
    for step in range(6):
        numbers = list(alive)
        verdicts = check(guard, [alive[number] for number in numbers])
        for number, cloned in zip(numbers, verdicts, strict=True):
            clones[number] += cloned
            if not cloned:
                del alive[number]
                continue
            inner = alive[number] if step else restored(alive[number])
            inner = inner[: more.get("cut", 65536)]
            stack = TUNNELS[tunnel_kind][0]()
            columns = {"identification": 1000 * step + number, "sequence": 1000 * step + number}
            packet = outer.tunnelled(stack, inner, *TRANSLATED[version], **columns)
            alive[number] = outer.frame(packet)
            if more.get("foreign"):
                around = vxlan_tunnel(4789, 55)
                packet = outer.tunnelled(around, alive[number], "10.7.7.1", "10.7.7.2", **columns)
                alive[number] = outer.frame(packet)
    assert not alive, "still looping"
    assert min(clones) >= 1
    return max(clones)


@pytest.mark.parametrize("tunnel_kind", TUNNELS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
def test_a_loop_with_translated_addresses_ends(tunnel_kind: str, version: int, inner: int) -> None:
    guard = armed(tunnel_kind, version)
    frames = [original(number, inner) for number in range(1, 10)]  # few: no two share a slot
    assert loop(guard, tunnel_kind, version, frames) <= 2


@pytest.mark.parametrize("tunnel_kind", ["vxlan", "gre-ip", "erspan1"])
def test_a_loop_that_comes_back_in_a_foreign_tunnel_ends(tunnel_kind: str) -> None:
    frames = [original(number) for number in range(1, 20)]
    assert loop(armed(tunnel_kind, 4), tunnel_kind, 4, frames, foreign=1) <= 2


def test_a_loop_through_a_tunnel_that_cuts_ends() -> None:
    frames = [original(number, octets=1400) for number in range(1, 20)]
    assert loop(armed("vxlan", 4), "vxlan", 4, frames, cut=1300) <= 2


def datagram(number: int, inner: int) -> bytes:
    """Return a frame of which the UDP checksum is not finished; all have the same length."""
    segment = bytearray(outer.udp(number.to_bytes(8) + bytes(2000), 5000, 53))
    segment[6:8] = b"\x12\x34"
    addresses = ("2001:db8:a::1", "2001:db8:b::1") if inner == 6 else ("10.0.0.1", "10.0.0.2")
    return outer.frame(outer.ip(bytes(segment), 17, *addresses, number))


def finished(frame: bytes) -> bytes:
    """Write the checksum of a frame with UDP."""
    at = 14 + (40 if frame[14] >> 4 == 6 else 20)
    return frame[: at + 6] + (sum(frame[at + 8 :]) & 0xFFFF | 1).to_bytes(2) + frame[at + 8 :]


def first_segment(frame: bytes, octets: int = 1000) -> bytes:
    """Return the first of the segments that a TCP or UDP super-packet is cut into."""
    packet = frame[14:]
    if packet[0] >> 4 == 6:
        payload, number, source, destination = packet[40:], packet[6], packet[8:24], packet[24:40]
    else:
        payload, number, source, destination = packet[20:], packet[9], packet[12:16], packet[16:20]
    payload = payload[: octets + (8 if number == 17 else 20)]
    if number == 17:
        payload = payload[:4] + len(payload).to_bytes(2) + b"\xbe\xef" + payload[8:]
    else:
        payload = payload[:13] + bytes([payload[13] & ~0x09]) + payload[14:]  # neither PSH nor FIN
    addresses = str(ip_address(source)), str(ip_address(destination))
    return outer.frame(outer.ip(payload, number, *addresses, int.from_bytes(packet[4:6])))


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("restored", [finished, first_segment])
def test_what_restoring_changes_does_not_hide_a_loop(
    inner: int, restored: Callable[[bytes], bytes]
) -> None:
    frames = [datagram(number, inner) for number in range(1, 20)]
    assert loop(armed("vxlan", 4), "vxlan", 4, frames, restored) <= 2


@pytest.mark.parametrize("inner", [4, 6])
def test_the_first_segment_of_a_tcp_super_packet_is_known(inner: int) -> None:
    frames = [original(number, inner, 5000) for number in range(1, 20)]
    assert loop(armed("vxlan", 4), "vxlan", 4, frames, first_segment) <= 2


@pytest.mark.parametrize("inner", [4, 6])
def test_a_loop_of_later_segments_ends_one_return_later(inner: int) -> None:
    def later(frame: bytes) -> bytes:
        return original(40_000 + int.from_bytes(frame[-5004:-5000]), inner, 1000)

    frames = [original(number, inner, 5000) for number in range(1, 20)]
    assert loop(armed("vxlan", 4), "vxlan", 4, frames, later) <= 3


@pytest.mark.parametrize("octets", [0, 1, 4, 7])
def test_a_loop_of_packets_without_much_in_them_ends(octets: int) -> None:
    frames = [
        outer.frame(outer.ipv4(bytes(octets), 200, "10.0.0.1", "10.0.0.2", number))
        for number in range(1, 9)
    ]
    assert loop(armed("vxlan", 4), "vxlan", 4, frames) <= 2


def test_a_loop_that_starts_unarmed_ends() -> None:
    stack = TUNNELS["vxlan"][0]()
    guard = LoopGuard([Signature(REMOTE[4], stack.kind, stack.port, stack.identifier)])
    assert not guard.breaker.armed
    assert loop(guard, "vxlan", 4, [original(1)]) <= 3  # the first was not remembered


@pytest.mark.parametrize("inside_first", [True, False])
def test_hosts_that_mirror_both_sides_of_their_overlay_lose_nothing(inside_first: bool) -> None:
    guard = armed("vxlan", 4)
    overlay = vxlan_tunnel(4789, 42)
    for start in range(0, 4000, 500):
        inside = [original(number) for number in range(start, start + 500)]
        outside = [
            outer.frame(
                outer.tunnelled(overlay, each, "10.8.8.1", "10.8.8.2", identification=number)
            )
            for number, each in enumerate(inside, start)
        ]
        for frames in (inside, outside) if inside_first else (outside, inside):
            assert all(check(guard, frames))
        mixed = [each for pair in zip(inside, outside, strict=True) for each in pair]
        assert all(check(guard, mixed))


def test_nothing_is_remembered_without_tunnels() -> None:
    guard = LoopGuard([])
    assert all(check(guard, [original(number) for number in range(100)]))
    assert not guard.breaker.armed
    assert not guard.breaker._digests.any()


def test_the_table_is_bounded_and_newer_packets_push_out_older_ones() -> None:
    guard = armed("vxlan", 4)
    size = guard.breaker._digests.nbytes + guard.breaker._generations.nbytes
    assert size == SLOTS * 9
    for start in range(0, 20_000, 2000):
        assert all(check(guard, [original(number) for number in range(start, start + 2000)]))
    assert guard.breaker._digests.nbytes + guard.breaker._generations.nbytes == size
    assert loop(guard, "vxlan", 4, [original(number) for number in range(30_000, 30_050)]) <= 2


def test_retransmissions_and_other_traffic_pass() -> None:
    guard = armed("vxlan", 4)
    frames = [original(number) for number in range(100)]
    arp = outer.MACS + bytes.fromhex("0806") + bytes(46)
    for _ in range(5):
        assert all(check(guard, [*frames, arp]))
    assert check(guard, []) == []
