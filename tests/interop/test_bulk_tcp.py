"""Bulk TCP with all offloads on, mirrored: every clone is what the wire had, nothing else happens.

Judges: the kernel, which segments and checksums the same packets for an interface without offloads
(netns-lab/truth.py); tshark's checksums; a scalar reassembly of the octet streams.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import live
import pytest
import streams
from live import (
    FAR4,
    FAR6,
    FULL_FRAME,
    MIRRORED,
    Lab,
    Net,
    compare,
    inside,
    remote,
    truth,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("root")

UP, DOWN = streams.content(12_000_000, 1), streams.content(9_000_000, 2)
SENTINEL = b"the collector has seen all that came before this"
Frames = list[compare.Frame]
DOT1Q, DOT1AD = 0x8100 << 16, 0x88A8 << 16


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net
    wire: Path


class Mirrored(NamedTuple):
    """What the judge and the collector have of one transfer, and the ledgers."""

    pcap: Path
    wire: Frames
    got: Frames
    sent: dict[str, Any]
    received: dict[str, Any]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    live.need("tshark")
    with live.routed() as (lab, net):
        for namespace, interface, number in ((net.source, "eth0", 1), (net.host, MIRRORED, 2)):
            lab.setting(namespace, f"net/ipv6/conf/{interface}/disable_ipv6", "0")
            lab.address(namespace, interface, f"192.0.2.{number}/24", f"2001:db8:1::{number}/64")
        judge, path = truth.record(lab, net.host, MIRRORED)
        yield Place(lab, net, path)
        judge.stop()
        assert truth.lost(judge) == 0


@pytest.mark.parametrize(
    ("address", "to"),
    [
        ("192.0.2.2", f"gre://{FAR4}?seq=on"),
        ("2001:db8:1::2", f"erspan3://{remote(FAR6)}?session=7"),
    ],
    ids=["ipv4", "ipv6"],
)
def test_the_stream_of_a_real_transfer(place: Place, address: str, to: str) -> None:
    pcap, wire, got, sent = whole(lambda number: mirror(place, address, to, number))

    assert max(frame.wire_length for frame in got) <= FULL_FRAME
    assert {UP, DOWN} == set(streams.reassemble(got))
    assert sent["segments"] > 3 * sent["cloned"] > 300  # there were super-packets
    assert sent["unsegmented"] == 0
    live.assert_same(wire, got)
    assert_checksums(pcap, len(got))


def mirror(place: Place, address: str, to: str, number: int) -> Mirrored:
    """Mirror one transfer; another one follows when the sender has ended."""
    lab, net = place.lab, place.net
    pcap = lab.folder / f"bulk-{address.count(':')}-{number}.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap))
    before = len(compare.read(place.wire))
    sender = live.send(lab, net.host, "-i", MIRRORED, "--to", to)

    streams.transfer(net.source, net.host, address, UP, DOWN)
    sent = sender.end()
    streams.transfer(net.source, net.host, address, b"after the sender", b"has ended")
    tell_the_end(net)
    wait_until(lambda: compare.holds(compare.read(pcap), SENTINEL), 10, "the last clone", every=0.1)
    received = collector.end()

    wire = streams.of_transfer(compare.read(place.wire)[before:])
    second = next(i for i, frame in enumerate(wire) if is_syn(frame) and i > 2)
    after = [frame for frame in wire[second:] if frame.octets.endswith((b"sender", b"has ended"))]
    assert len(after) >= 2  # the judge saw what the sender did not any more
    got = streams.of_transfer(compare.read(pcap))
    return Mirrored(pcap, wire[:second], got, sent, received)


@pytest.mark.parametrize(
    ("tags", "ipv6"),
    [((DOT1Q | 3 << 13 | 5,), False), ((DOT1AD | 7, DOT1Q | 1 << 13 | 8), True)],
    ids=["802.1Q ipv4", "QinQ ipv6"],
)
def test_the_stream_of_tagged_super_packets(
    place: Place, tags: tuple[int, ...], ipv6: bool
) -> None:
    """This machine's kernel may have no VLAN devices, so their super-packets are made here."""
    pcap, wire, got, _ = whole(lambda number: mirror_tagged(place, tags, ipv6, number))

    assert max(frame.wire_length for frame in got) == FULL_FRAME + 4 * len(tags)
    assert {found.tags for frame in got if (found := streams.segment(frame.octets))} == {tags}
    assert streams.reassemble(got) == [UP + DOWN]
    live.assert_same(wire, got)
    assert_checksums(pcap, len(got))


def mirror_tagged(place: Place, tags: tuple[int, ...], ipv6: bool, number: int) -> Mirrored:
    """Mirror a stream of tagged super-packets."""
    lab, net = place.lab, place.net
    pcap = lab.folder / f"tagged-{len(tags)}-{number}.pcap"
    collector = live.listen(lab, net.far, "--geneve", "6081", "--pcap", str(pcap))
    before = len(compare.read(place.wire))
    sender = live.send(lab, net.host, "-i", MIRRORED, "--to", f"geneve://{FAR4}")

    data = UP + DOWN
    mss = FULL_FRAME - 14 - (60 if ipv6 else 40)
    packets = list(streams.super_packets(data, tags, ipv6, mss))
    streams.inject(net.source, "eth0", packets)
    live.collected(pcap, -(-len(data) // mss) + 1, seconds=4)
    sent, received = sender.end(), collector.end()
    got = streams.of_transfer(compare.read(pcap))
    return Mirrored(
        pcap, streams.of_transfer(compare.read(place.wire)[before:]), got, sent, received
    )


def whole(attempt: Callable[[int], Mirrored]) -> tuple[Path, Frames, Frames, dict[str, Any]]:
    """Return the first of three attempts in which a busy machine made nobody drop anything.

    In every attempt nothing is collected that was not on the wire, and the ledgers say of every
    frame that is missing who lost it.
    """
    for number in range(3):
        done = attempt(number)
        extra = Counter(done.got) - Counter(done.wire)
        assert not extra
        assert done.sent["balanced"]
        assert done.received["balanced"]
        later = done.received["socket_dropped"]
        later += sum(sum(sink["dropped"].values()) for sink in done.received["sinks"])
        later += sum(tunnel["queue_dropped"] for tunnel in done.sent["tunnels"])
        assert later >= sum(stream["lost"] for stream in done.received["streams"])
        missing = len(done.wire) - len(done.got)
        if not done.sent["kernel_dropped"]:
            assert missing == later
        if not missing:
            return done.pcap, done.wire, done.got, done.sent
    raise AssertionError(f"frames were lost in each attempt: {done.sent}, {done.received}")


def is_syn(frame: compare.Frame) -> bool:
    """Tell the first packet of a connection."""
    found = streams.segment(frame.octets)
    return found is not None and found.syn and frame.octets[6:12] == bytes.fromhex("020000000101")


def tell_the_end(net: Net) -> None:
    """Send one frame through GRE by hand: when it is collected, all before it has been."""

    def work(far: str) -> None:
        family = socket.AF_INET6 if ":" in far else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW, 47) as sock:
            frame = bytes.fromhex("020000000002020000000001") + b"\x90\x00" + SENTINEL
            sock.sendto(bytes.fromhex("00006558") + frame, (far, 0))

    inside(net.host, work, FAR4)
    inside(net.host, work, FAR6)


def assert_checksums(path: Path, packets: int) -> None:
    """Assert that tshark has checked every TCP packet and found none bad."""
    states = streams.checksum_states(path)
    assert states["tcp"]["1"] >= packets
    assert {state: n for kind in states.values() for state, n in kind.items() if state == "0"} == {}
