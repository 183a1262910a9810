"""A running collector on the loopback of a namespace: exact counts, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import outer
import pcap_files
import pytest
import structlog

import lab
from collector import collector as module
from collector.cli_sinks import openers
from collector.collector import Collector, ListenOptions
from collector.ledger import SinkLedger
from collector.listener import parse_wanted
from collector.sinks.tap import TapSink
from tunnelbridge import console
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.slab import SlabPool
from tunnelbridge.wire.encapsulation import geneve_tunnel, vxlan_tunnel

pytestmark = pytest.mark.usefixtures("root")

PORT = 4789


def inner(number: int) -> bytes:
    payload = outer.udp(number.to_bytes(8), 1, 2)
    return outer.frame(outer.ipv4(payload, 17, "10.0.0.1", "10.0.0.2"))


def datagram(number: int, vni: int = 7) -> bytes:
    """Return a VXLAN datagram, from behind its UDP header."""
    row: bytes = vxlan_tunnel(PORT, vni).rows(outer.clones([inner(number)]))[0].tobytes()
    return row[8:] + inner(number)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def ns(root: None) -> Iterator[str]:
    with lab.namespace() as name:
        lab.run("ip", "-n", name, "address", "add", "192.0.2.1/24", "dev", "lo")
        yield name


def start(ns: str, pcap: str | None = None, taps: Sequence[str] = (), **options: Any) -> Collector:
    wanted = parse_wanted(None, (PORT,), (), (), ())
    options.setdefault("sinks", openers([pcap] if pcap else [], taps, options.get("stats")))
    return lab.in_namespace(ns, Collector, ListenOptions(wanted, ["127.0.0.1"], **options))


def send(ns: str, *datagrams: bytes, source: str = "127.0.0.1") -> None:
    with lab.in_namespace(ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.connect(("127.0.0.1", PORT))
        for each in datagrams:
            sock.send(each)


def run(collector: Collector, steer: Callable[[], Any] | None = None) -> None:
    """Run a collector to its end; ``steer`` ends it, once it listens."""

    async def work() -> None:
        task = asyncio.create_task(collector.run())
        await asyncio.sleep(0)  # now it listens, to signals too
        if steer is not None:
            await steer()
        await asyncio.wait_for(task, 10)

    asyncio.run(work())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the collector has no event for it
            await asyncio.sleep(0)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_everything_is_counted_delivered_and_told(
    ns: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.configure_logging(verbose=False)
    path, stats = tmp_path / "x.pcap", tmp_path / "stats.json"
    before = lab.descriptors()
    collector = start(ns, pcap=str(path), taps=["tap-all"], allow=["127.0.0.0/8"], stats=str(stats))

    async def steer() -> None:
        send(ns, *map(datagram, range(5)), b"short")
        send(ns, datagram(5), source="192.0.2.1")
        await until(lambda: collector.ledger.received == 7)
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(stats.exists)
        send(ns, datagram(6))
        stop()  # what waits in the socket is still taken

    run(collector, steer)
    collector.report()

    ledger = json.loads(stats.read_text())
    assert (ledger["received"], ledger["decapsulated"], ledger["balanced"]) == (8, 6, True)
    assert ledger["rejected"] == {"not-allowed": 1, "vxlan-short": 1}
    (stream,) = ledger["streams"]
    assert (stream["source"], stream["identifier"], stream["packets"]) == ("127.0.0.1", 7, 6)
    assert [sink["name"] for sink in ledger["sinks"]] == ["tap tap-all", f"pcap {path}"]
    assert [sink["delivered"] for sink in ledger["sinks"]] == [6, 6]
    refused = {(each["source"], each["reason"]): each["packets"] for each in ledger["refused"]}
    assert refused == {("127.0.0.1", "vxlan-short"): 1, ("192.0.2.1", "not-allowed"): 1}
    frames = [octets for _, octets, _ in pcap_files.parse(path.read_bytes())]
    assert frames == [inner(number) for number in (0, 1, 2, 3, 4, 6)]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["event"] == "listening"
    assert f"UDP (vxlan {PORT}) on 127.0.0.1" in lines[0]["on"]
    assert [line["event"] for line in lines[1:]] == [
        "done", "stream", "sink", "sink", "refused", "refused",
    ]  # fmt: skip
    assert lines[1]["reason"] == "SIGTERM"
    assert "tap-all" not in lab.run("ip", "-n", ns, "-o", "link")
    assert lab.left_open(before) == []


def test_tunnels_that_are_not_allowed_are_refused_before_anything_is_delivered(
    ns: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pcap"
    collector = start(ns, pcap=str(path), allow=["127.0.0.0/8,vni=6-7", "192.0.2.1,key=9"])

    async def steer() -> None:
        send(ns, datagram(0), datagram(1, 9), datagram(2, 6), b"short", datagram(3, 8))
        send(ns, datagram(4), source="192.0.2.1")
        await until(lambda: collector.ledger.received == 6)
        stop()

    run(collector, steer)

    assert collector.ledger.balances()
    assert collector.ledger.rejected == Counter({"not-allowed": 3, "vxlan-short": 1})
    refused = {
        (each.source, each.encapsulation, each.reason): each.packets
        for each in collector.intake.refused.ledgers()
    }
    assert refused == {
        ("127.0.0.1", "vxlan", "not-allowed"): 2,
        ("192.0.2.1", "vxlan", "not-allowed"): 1,
        ("127.0.0.1", "vxlan", "vxlan-short"): 1,
    }
    assert [each.key() for each in collector.streams.ledgers()] == [
        "vxlan 127.0.0.1 vni 7",
        "vxlan 127.0.0.1 vni 6",
    ]
    frames = [octets for _, octets, _ in pcap_files.parse(path.read_bytes())]
    assert frames == [inner(0), inner(2)]


def test_every_sink_has_its_own_filter_and_snap_length(ns: str, tmp_path: Path) -> None:
    """The numbers of the inner packets are at octet 42; one file takes the even ones, cut."""
    whole, even = tmp_path / "whole", tmp_path / "even"
    sinks = openers([str(whole), f"{even}?filter=ether[49] & 1 = 0&snaplen=20"], [], None)
    collector = start(ns, sinks=sinks)

    async def steer() -> None:
        send(ns, *map(datagram, range(6)))
        await until(lambda: collector.ledger.received == 6)
        stop()

    run(collector, steer)

    assert collector.ledger.balances()
    assert [sink.filtered for sink in collector.ledger.sinks] == [0, 3]
    records = [pcap_files.parse(path.read_bytes()) for path in (whole, even)]
    assert [packet for _, packet, _ in records[0]] == [inner(number) for number in range(6)]
    assert [(packet, length) for _, packet, length in records[1]] == [
        (inner(number)[:20], len(inner(number))) for number in (0, 2, 4)
    ]


def test_frames_have_the_time_their_source_tells(ns: str, tmp_path: Path) -> None:
    path, stamped = tmp_path / "x", 1_700_000_000_123_456_789
    wanted = parse_wanted(None, (), (6081,), (), ())
    options = ListenOptions(
        wanted, ["127.0.0.1"], source_time=True, sinks=openers([str(path)], [], None), count=1
    )
    collector = lab.in_namespace(ns, Collector, options)
    clones = outer.clones([inner(0)], timestamp=stamped)
    row = geneve_tunnel(6081, 5, True).rows(clones)[0].tobytes()
    with lab.in_namespace(ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(row[8:] + inner(0), ("127.0.0.1", 6081))

    run(collector)

    ((seen, packet, _),) = pcap_files.parse(path.read_bytes())
    assert (seen, packet) == (stamped, inner(0))
    (stream,) = collector.streams.ledgers()
    assert stream.first_seen == stream.last_seen > stamped  # streams are seen when they arrive


def test_datagrams_that_cannot_be_put_together_are_told_beside(ns: str) -> None:
    collector = start(ns)

    def contradict() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for field in (0x2000, 0x0004, 0x2006):  # the second overlaps the first
                octets = bytes(64)
                packet = outer.ipv4(octets, 17, "127.0.0.1", "127.0.0.1", 99, field)
                sock.sendto(packet, ("127.0.0.1", 0))

    async def steer() -> None:
        lab.in_namespace(ns, contradict)
        send(ns, datagram(0))
        await until(lambda: collector.ledger.received == 1)
        stop()

    run(collector, steer)

    assert collector.ledger.reassembly_failed > 0
    assert collector.as_dict()["reassembly_failed"] == collector.ledger.reassembly_failed
    assert collector.ledger.balances()


def test_a_reader_that_stalls_costs_the_other_sinks_nothing(ns: str, tmp_path: Path) -> None:
    """A FIFO that nobody reads, with a small queue, beside a file and a tap."""
    stalled, path = tmp_path / "fifo", tmp_path / "x.pcap"
    os.mkfifo(stalled)
    reader = os.open(stalled, os.O_RDONLY | os.O_NONBLOCK)
    collector = start(ns, sinks=openers([f"{stalled}?queue=100kB", str(path)], ["tap-stall"], None))
    count, at_once = 3000, 100

    async def steer() -> None:
        for first in range(0, count, at_once):
            send(ns, *map(datagram, range(first, first + at_once)))
            await until(lambda n=first + at_once: collector.ledger.received == n)
        stop()

    try:
        run(collector, steer)
    finally:
        os.close(reader)

    tap, fifo, file = collector.ledger.sinks
    assert collector.ledger.balances()
    assert collector.ledger.socket_dropped == 0
    assert (tap.delivered, file.delivered) == (count, count)
    assert fifo.dropped["queue-full"] > 0
    frames = [octets for _, octets, _ in pcap_files.parse(path.read_bytes())]
    assert frames == [inner(number) for number in range(count)]
    assert collector._pool.free == 6


def test_sinks_are_told_the_time(ns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.01)
    ticks: list[int] = []

    class Clock(TapSink):
        def __init__(self) -> None:
            self.ledger = SinkLedger("clock")

        def tick(self, now: int) -> None:
            ticks.append(now)

        def close(self) -> None:
            pass

    collector = start(ns, sinks=[lambda _: Clock()])
    began = time.time_ns()

    async def steer() -> None:
        await until(lambda: len(ticks) > 2)
        stop()

    run(collector, steer)

    seen = [began, *ticks, time.time_ns()]
    assert seen == sorted(seen)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_count_is_exact(ns: str, tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.pcap"
    collector = start(ns, pcap=str(path), count=count)
    send(ns, *map(datagram, range(5)), b"short")

    run(collector)

    frames = [octets for _, octets, _ in pcap_files.parse(path.read_bytes())]
    assert frames == [inner(number) for number in range(count)]
    assert collector.ledger.decapsulated == count
    assert collector.ledger.balances()
    assert collector._reason == "count"


def test_the_duration_ends_it(ns: str) -> None:
    collector = start(ns, duration=0.05)

    run(collector)

    assert collector._reason == "duration"
    assert collector.ledger.balances()


def test_what_waits_in_the_socket_at_the_end_is_taken(ns: str) -> None:
    collector = start(ns)

    async def steer() -> None:
        send(ns, datagram(1))
        collector._end("test")  # before the loop looks at the socket again

    run(collector, steer)

    assert collector.ledger.decapsulated == 1


def test_more_than_a_slab_at_once(ns: str) -> None:
    collector = start(ns)

    async def steer() -> None:
        send(ns, *map(datagram, range(1025)))
        stop()

    run(collector, steer)

    assert collector.ledger.decapsulated + collector.ledger.socket_dropped == 1025
    assert collector._pool.free == 6


def test_it_ends_when_nobody_reads_its_output(
    ns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK", 0.01)
    reader, writer = os.pipe()
    monkeypatch.setattr("collector.sinks.pcap.open_pcap", lambda _: writer)
    collector = start(ns, pcap="-")
    os.close(reader)
    send(ns, datagram(1))

    run(collector)

    assert collector._reason == "nobody reads the pcap output any more"
    assert collector.ledger.sinks[0].dropped == Counter({"reader-gone": 1})
    assert collector.ledger.balances()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pcap": "/nosuch/x.pcap"}, UserError, "^cannot write /nosuch/x.pcap"),
        ({"taps": ["tap-one", "a name"]}, UsageError, "cannot name a tap"),
        ({"taps": ["tap-one", "tap-one"]}, UserError, "tap tap-one is in use"),
        ({"allow": ["10.0.0.0/33"]}, UsageError, "^--allow 10.0.0.0/33"),
        ({"stats": "/nosuch/stats"}, UserError, "^cannot write /nosuch/stats: no such directory"),
    ],
)
def test_mistakes_leave_nothing_behind(
    ns: str, options: dict[str, Any], error: type[UserError], message: str
) -> None:
    before = lab.descriptors()

    with pytest.raises(error, match=message):
        start(ns, **options)

    assert lab.left_open(before) == []
    assert "tap-one" not in lab.run("ip", "-n", ns, "-o", "link")


def test_a_bug_ends_it_with_its_traceback(ns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a callback must not leave a collector that runs and receives nothing."""
    collector = start(ns)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("collector.intake.decapsulate", broken)

    async def steer() -> None:
        send(ns, datagram(0))

    with pytest.raises(ZeroDivisionError):
        run(collector, steer)
    assert collector._pool.free == SlabPool().free


def test_a_snapshot_without_a_file_goes_to_standard_error(
    ns: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output may be somebody's pcap."""
    collector = start(ns, pcap=str(tmp_path / "x.pcap"))
    seen: list[str] = []

    async def steer() -> None:
        send(ns, datagram(0))
        await until(lambda: collector.ledger.received == 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(
            lambda: seen.append(capsys.readouterr().err) or "collector listen" in "".join(seen)
        )
        stop()

    run(collector, steer)

    assert json.loads("".join(seen))["balanced"] is True
    assert capsys.readouterr().out == ""


def test_packets_and_ledger_do_not_share_standard_output(ns: str) -> None:
    with pytest.raises(UsageError, match="cannot share standard output"):
        start(ns, pcap="-", stats="-")
