"""Taps with several queues, and a tap per stream: which frames appear where."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import outer
import pytest
from delivered import delivery
from structlog.testing import capture_logs

import lab
from collector.sinks.options import parse_sink
from collector.sinks.tap import TapSink
from collector.sinks.tap_per_stream import TapPerStreamSink
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.tap import open_tap

pytestmark = pytest.mark.usefixtures("root")

SOL_PACKET, PACKET_FANOUT, PACKET_FANOUT_QM = 263, 18, 5  # linux/if_packet.h
QUEUES = 4


def names(number: int) -> str:
    return f"stream {number}"


@pytest.fixture
def ns(root: None) -> Iterator[str]:
    with lab.namespace() as name:
        yield name


def packet_socket(interface: str, group: int | None = None) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    sock.bind((interface, 3))
    if group is not None:  # a frame of queue q goes to the member q modulo their number
        sock.setsockopt(SOL_PACKET, PACKET_FANOUT, PACKET_FANOUT_QM << 16 | group)
    sock.settimeout(0)
    return sock


@contextmanager
def readers(ns: str, interface: str, count: int) -> Iterator[list[socket.socket]]:
    """Open sockets among which the kernel divides what comes, by queue."""
    with ExitStack() as opening:
        group = 7 if count > 1 else None
        yield [
            opening.enter_context(lab.in_namespace(ns, packet_socket, interface, group))
            for _ in range(count)
        ]


def drain(sock: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(sock.recv(1 << 17))
        except BlockingIOError:
            return frames


def flow(number: int, reply: bool = False, version: int = 4) -> bytes:
    """A UDP frame of one of many flows, either way."""
    ends = [(f"10.0.0.{number % 250 + 1}", 1000 + number), ("192.0.2.1", 53)]
    if version == 6:
        ends = [(f"2001:db8::{number:x}", 1000 + number), ("2001:db8:1::1", 53)]
    (source, sport), (destination, dport) = reversed(ends) if reply else ends
    packet = outer.ip(outer.udp(bytes([number]) * 20, sport, dport), 17, source, destination)
    return outer.frame(packet)


def with_heads(frames: list[bytes], cut: int) -> Batch:
    """Frames whose first octets are heads, as removed tags and synthetic MAC addresses are."""
    batch, front = (
        from_packets([each[cut:] for each in frames]),
        from_packets([each[:cut] for each in frames]),
    )
    batch.head, batch.head_start, batch.head_length = front.memory, front.start, front.length
    return batch


@pytest.mark.parametrize("head", [0, 14, 18])
def test_both_directions_of_a_flow_keep_to_one_queue(ns: str, head: int) -> None:
    flows = range(64)
    frames = [
        flow(n, reply, version) for n in flows for reply in (False, True) for version in (4, 6)
    ]
    batch = with_heads(frames, head) if head else from_packets(frames)
    sink = TapSink(parse_sink(f"{ns}:many0", "--tap"), QUEUES)
    with readers(ns, "many0", QUEUES) as sockets:
        sink.put(delivery(batch))
        sink.put(delivery(from_packets([])))
        got = [drain(sock) for sock in sockets]
    sink.close()

    assert Counter(frame for each in got for frame in each) == Counter(frames)
    where = {frame: place for place, each in enumerate(got) for frame in each}
    for number in flows:
        for version in (4, 6):
            assert where[flow(number, False, version)] == where[flow(number, True, version)]
    assert min(map(len, got)) > len(frames) / QUEUES / 3  # all of them are used
    assert (sink.ledger.delivered, sink.ledger.octets) == (len(frames), sum(map(len, frames)))


def test_fragments_follow_their_first_and_short_frames_are_counted(ns: str) -> None:
    whole = outer.ipv4(outer.udp(bytes(2000), 1234, 53), 17, "10.0.0.1", "10.0.0.2", 77)
    frames = [outer.frame(each) for each in outer.fragments(whole, 1480, 77)]
    sink = TapSink(parse_sink(f"{ns}:many0", "--tap"), QUEUES)
    with readers(ns, "many0", QUEUES) as sockets:
        for number in range(8):  # alone, a fragment would go by its addresses
            sink.put(delivery(from_packets([flow(number), *frames, b"short"])))
        got = [drain(sock) for sock in sockets]
    sink.close()
    assert sorted(sum(each in frames for each in queue) for queue in got) == [0, 0, 0, 16]
    assert sink.ledger.dropped == {"short": 8}
    assert sink.ledger.total() == 8 * 4


def test_the_kernel_says_how_many_queues_there_are(ns: str) -> None:
    tap = open_tap("many0", ns, 3)
    assert tap.queues == 3
    told = lab.run("ls", "/sys/class/net/many0/queues", ns=ns)
    assert [name for name in told.split() if name.startswith("rx")] == ["rx-0", "rx-1", "rx-2"]
    with pytest.raises(UserError, match="many0 exists and is not a tap of the usual kind"):
        open_tap("many0", ns)
    tap.close()
    tap.close()
    assert "many0" not in lab.run("ip", "-n", ns, "-o", "link")
    for queues in (0, 257):
        with pytest.raises(UsageError, match=f"{queues} queues: expected 1 to 256"):
            open_tap("many0", ns, queues)


# --- a tap per stream ---


def test_each_stream_has_its_tap_in_order_of_appearance(ns: str) -> None:
    sink = TapPerStreamSink(parse_sink(f"{ns}:mon?most=3", "--tap-per-stream", ("most",)), names)
    links = lab.run("ip", "-n", ns, "-o", "link")
    assert "mon0" in links  # at once, so that an analyser can begin to listen
    assert "mon1" not in links
    frames = [flow(number) for number in range(8)]
    with capture_logs() as logs, ExitStack() as opening:
        first = opening.enter_context(lab.in_namespace(ns, packet_socket, "mon0"))
        sink.put(delivery(from_packets(frames[:2]), stream=[9, 9]))
        sink.put(delivery(from_packets([]), stream=[]))
        sink.put(delivery(from_packets(frames[2:4]), stream=[4, 9]))  # creates mon1 for 4
        second = opening.enter_context(lab.in_namespace(ns, packet_socket, "mon1"))
        sink.put(delivery(from_packets(frames[4:8]), stream=[4, 9, 2, 0]))
        assert drain(first) == [*frames[:2], frames[3], frames[5]]
        assert drain(second) == [frames[4]]
    assert sink.ledger.delivered == 7
    assert sink.ledger.dropped == {"too-many-streams": 1}
    assert sink.ledger.total() == 8
    told = [(each["event"], each.get("tap"), each["stream"]) for each in logs]
    assert told == [
        ("stream on a tap", "mon0", "stream 9"),
        ("stream on a tap", "mon1", "stream 4"),
        ("stream on a tap", "mon2", "stream 2"),
        ("no taps left: streams from here on are dropped", None, "stream 0"),
    ]
    sink.close()
    assert "mon" not in lab.run("ip", "-n", ns, "-o", "link")


def test_a_tap_that_cannot_be_had_costs_its_stream_only(ns: str) -> None:
    sink = TapPerStreamSink(parse_sink(f"{ns}:mon", "--tap-per-stream"), names)
    taken = open_tap("mon1", ns)
    with capture_logs() as logs:
        for _ in range(2):
            sink.put(delivery(from_packets([flow(n) for n in range(3)]), stream=[0, 1, 2]))
    assert sink.ledger.delivered == 4
    assert sink.ledger.dropped == {"no-tap": 2}
    failures = [each["reason"] for each in logs if each["log_level"] == "error"]
    assert len(failures) == 1
    assert "mon1 is in use by another program" in failures[0]
    taken.close()
    sink.close()


def test_only_streams_that_the_filter_lets_through_have_a_tap(ns: str) -> None:
    text = f"{ns}:mon?filter=port 1001&snaplen=30"
    sink = TapPerStreamSink(parse_sink(text, "--tap-per-stream"), names)
    with lab.in_namespace(ns, packet_socket, "mon0") as reader:
        sink.put(delivery(from_packets([flow(0), flow(1)]), stream=[5, 6]))
        assert drain(reader) == [flow(1)[:30]]
    assert (sink.ledger.delivered, sink.ledger.filtered) == (1, 1)
    sink.close()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", UsageError, "expected 1 to 13 characters"),
        ("fourteen-chars", UsageError, "expected 1 to 13 characters"),
        ("fifteen-chars?most=10", UsageError, None),
        ("a b", UsageError, "cannot name a tap"),
        ("mon?most=0", UsageError, "most=0: expected a number of taps"),
        ("mon?most=x", UsageError, "most=x: expected a number of taps"),
        ("nosuchnamespace:mon", UserError, "no network namespace named nosuchnamespace"),
    ],
)
def test_mistakes(text: str, error: type[UserError], words: str | None) -> None:
    if words is None:  # thirteen characters and a digit are a name
        with lab.namespace() as ns:
            TapPerStreamSink(
                parse_sink(f"{ns}:{text}", "--tap-per-stream", ("most",)), names
            ).close()
        return
    with pytest.raises(error, match=words):
        TapPerStreamSink(parse_sink(text, "--tap-per-stream", ("most",)), names)
