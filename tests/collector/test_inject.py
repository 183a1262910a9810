"""The inject sink: what comes out at the other end of a veth pair."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import outer
import pytest
from delivered import delivery

import lab
from collector.sinks.inject import InjectSink
from collector.sinks.options import parse_sink
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import pushing

pytestmark = pytest.mark.usefixtures("root")

MTU = 1400
TAG = bytes.fromhex("81000005")


@dataclass(frozen=True)
class Place:
    ns: str
    interface: str
    far: str


@pytest.fixture
def place(root: None) -> Iterator[Place]:
    with lab.namespace() as ns, lab.veth(ns, ns, mtu=MTU) as (near, far):
        yield Place(ns, near, far)


@pytest.fixture
def sink(place: Place) -> Iterator[InjectSink]:
    opened = InjectSink(parse_sink(f"{place.ns}:{place.interface}", "--inject"))
    yield opened
    opened.close()


@pytest.fixture
def reader(place: Place) -> Iterator[socket.socket]:
    with lab.in_namespace(place.ns, _listen, place.far) as sock:
        yield sock


def _listen(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.bind((interface, 3))
    sock.settimeout(5)
    return sock


def frame(size: int, number: int = 0, tag: bytes = b"") -> bytes:
    front = bytes.fromhex("02000000000b02000000000a") + tag + b"\x88\xb5"
    return (front + number.to_bytes(4) + bytes(size))[:size]


def untagged(frame: bytes) -> bytes:
    """Return what a packet socket gets of a frame: the kernel takes the tag out."""
    return frame[:12] + frame[16:] if frame[12:16] == TAG else frame


def with_heads(frames: list[bytes]) -> Batch:
    batch = from_packets([each[14:] for each in frames])
    front = from_packets([each[:14] for each in frames])
    batch.head, batch.head_start, batch.head_length = front.memory, front.start, front.length
    return batch


@pytest.mark.parametrize("count", [0, 1, 2, 1024, 1025])
@pytest.mark.parametrize("heads", [False, True])
def test_frames_come_out(sink: InjectSink, reader: socket.socket, count: int, heads: bool) -> None:
    frames = [frame(60 + number % 200, number) for number in range(count)]
    batch = with_heads(frames) if heads and count else from_packets(frames)
    sink.put(delivery(batch))
    assert [reader.recv(4096) for _ in frames] == frames
    assert (sink.ledger.delivered, sink.ledger.octets) == (count, sum(map(len, frames)))
    assert sink.ledger.total() == count


def test_frames_longer_than_the_mtu_are_counted_and_cost_the_others_nothing(
    place: Place, sink: InjectSink, reader: socket.socket
) -> None:
    whole = MTU + 14
    good = [frame(whole, 1), frame(whole + 4, 2, TAG), frame(60, 3)]
    bad = [frame(whole + 1, 4), frame(whole + 4, 5), frame(whole + 5, 6, TAG), frame(9000, 7)]
    mixed = [bad[0], good[0], bad[1], good[1], bad[2], bad[3], good[2]]
    sink.put(delivery(from_packets(mixed)))
    assert [reader.recv(4096) for _ in good] == list(map(untagged, good))
    assert sink.ledger.delivered == len(good)
    assert sink.ledger.dropped == {"too-long": len(bad)}

    for end in (place.interface, place.far):
        lab.run("ip", "-n", place.ns, "link", "set", end, "mtu", "9000")
    sink.tick(0)
    sink.put(delivery(from_packets(bad)))
    assert [reader.recv(16384) for _ in bad] == list(map(untagged, bad))
    assert sink.ledger.total() == len(mixed) + len(bad)


def test_filter_and_snap_length(place: Place, reader: socket.socket) -> None:
    text = f"{place.ns}:{place.interface}?filter=udp&snaplen=40"
    sink = InjectSink(parse_sink(text, "--inject"))
    packet = outer.frame(outer.ipv4(outer.udp(bytes(40), 1, 2), 17, "10.0.0.1", "10.0.0.2"))
    sink.put(delivery(from_packets([frame(60), packet])))
    assert reader.recv(4096) == packet[:40]
    assert (sink.ledger.delivered, sink.ledger.filtered) == (1, 1)
    sink.close()


def test_an_interface_that_goes_and_comes_back(place: Place, sink: InjectSink) -> None:
    """Counted while it is gone; found again by its name, also by another index."""
    sink.put(delivery(from_packets([frame(60)])))
    lab.run("ip", "-n", place.ns, "link", "delete", place.interface)
    sink.put(delivery(from_packets([frame(60), frame(60)])))
    sink.tick(0)
    assert sink.ledger.delivered == 1
    assert sink.ledger.dropped == {"no-interface": 2}
    assert not sink.is_gone()

    lab.run("ip", "-n", place.ns, "link", "add", place.interface, "type", "veth",
            "peer", "name", place.far)  # fmt: skip
    for end in (place.interface, place.far):
        lab.run("ip", "-n", place.ns, "link", "set", end, "up")
    with lab.in_namespace(place.ns, _listen, place.far) as reader:
        sink.tick(0)
        sink.put(delivery(from_packets([frame(1514, 9)])))
        assert reader.recv(4096) == frame(1514, 9)
    assert sink.ledger.total() == 4


def test_an_interface_that_is_down(place: Place, sink: InjectSink) -> None:
    lab.run("ip", "-n", place.ns, "link", "set", place.interface, "down")
    sink.put(delivery(from_packets([frame(60)] * 3)))
    assert sink.ledger.dropped == {"network-down": 3}


def test_what_a_full_queue_has_no_room_for_is_dropped_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow link: 1 Mbit/s takes far less than is sent, and nobody waits for it."""
    lab.need("tc")
    lab.run("tc", "-n", place.ns, "qdisc", "add", "dev", place.interface, "root", "tbf", "rate",
            "1mbit", "burst", "2000", "limit", "1000000000")  # fmt: skip
    sink = InjectSink(parse_sink(f"{place.ns}:{place.interface}", "--inject"))
    monkeypatch.setattr(pushing, "time", None)  # who waits looks at the clock
    batch = from_packets([frame(1414, number) for number in range(1000)])
    put = 0
    while not sink.ledger.dropped:
        sink.put(delivery(batch))
        put += 1000
        assert put < 100_000
    assert set(sink.ledger.dropped) == {"queue-full"}
    assert sink.ledger.total() == put
    sink.close()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", UsageError, "--inject : which interface"),
        ("ns:", UsageError, "--inject ns:: which interface"),
        ("nosuchinterface", UserError, "nosuchinterface"),
        ("nosuchnamespace:eth0", UserError, "no network namespace named nosuchnamespace"),
        ("lo?filter=and", UsageError, "syntax error"),
    ],
)
def test_mistakes(text: str, error: type[UserError], words: str) -> None:
    with pytest.raises(error, match=words):
        InjectSink(parse_sink(text, "--inject"))


def test_down_and_loopback(place: Place) -> None:
    lab.run("ip", "-n", place.ns, "link", "set", place.interface, "down")
    with pytest.raises(UserError, match=f"{place.interface} is down"):
        InjectSink(parse_sink(f"{place.ns}:{place.interface}", "--inject"))
    with pytest.raises(UserError, match="lo takes no Ethernet frames"):
        InjectSink(parse_sink(f"{place.ns}:lo", "--inject"))
