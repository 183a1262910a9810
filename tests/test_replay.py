"""Replaying a capture file, with a clock that only sleeping moves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import outer
import pcap_files
import pytest
import recording

from tunnelbridge import replay as module
from tunnelbridge.batch import Batch
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.clone.guard import LoopGuard
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.replay import LONGEST_NAP, parse_speed, replay

SECOND = 10**9
START = 1_700_000_000 * SECOND


def numbered(number: int) -> bytes:
    packet = outer.ipv4(outer.udp(number.to_bytes(8), 1, 2), 17, "10.0.0.1", "10.0.0.2")
    return outer.frame(packet)


@dataclass
class Clock:
    """The event loop's time; ``sleep`` moves it, a little more than asked for."""

    now: float = 1000.0
    naps: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.naps.append(seconds)
        self.now += seconds + 1e-6


@dataclass
class Listener:
    """Stands in for the pipeline: notes what is cloned when, in seconds since the start."""

    clock: Clock
    limit: int | None = None
    seen: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.limit is not None and len(self.seen) >= self.limit

    def process(self, batch: Batch, _: object = None) -> None:
        assert len(batch)
        since = self.clock.now - 1000.0
        self.seen += [(since, batch.octets(number)) for number in range(len(batch))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    loop = SimpleNamespace(time=lambda: clock.now)
    fake = SimpleNamespace(sleep=clock.sleep, get_running_loop=lambda: loop)
    monkeypatch.setattr(module, "asyncio", fake)
    return clock


async def run(path: Path, speed: str, listener: object, stop: asyncio.Event | None = None) -> list:
    told: list[int] = []
    capture = open_capture(path)
    stop = stop or asyncio.Event()
    await replay(capture, listener, lambda: None, parse_speed(speed), stop, told.append)
    return told


@pytest.mark.parametrize(
    ("text", "speed"), [("original", 0.0), ("max", None), ("1000", 1000.0), ("0.001", 0.001)]
)
def test_speeds(text: str, speed: float | None) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "fast", "nan", "10k", "Original", "inf", "1e-12", "0.00099"]
)
def test_no_speeds(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--speed {text}: expected original, max or packets"):
        parse_speed(text)


async def test_original_pace(clock: Clock, tmp_path: Path) -> None:
    times = [0.0, 0.01, 0.01, 2.0, 1.5, 2.0005, 2.5]  # one of them before its time
    packets = [(START + int(t * SECOND), numbered(n)) for n, t in enumerate(times)]
    listener = Listener(clock)

    await run(pcap_files.write(tmp_path / "x", packets), "original", listener)

    assert [octets for _, octets in listener.seen] == [numbered(n) for n in range(len(times))]
    due = [0.0, 0.01, 0.01, 2.0, 2.0, 2.0005, 2.5]
    for (sent, _), wanted in zip(listener.seen, due, strict=True):
        assert 0 <= sent - wanted < 1e-3
    assert max(clock.naps) <= LONGEST_NAP
    assert listener.seen[0][0] == 0.0


async def test_a_packet_before_its_time_waits_for_its_turn(clock: Clock, tmp_path: Path) -> None:
    times = [0.0, 2.0, 0.5, 2.5]
    packets = [(START + int(t * SECOND), numbered(n)) for n, t in enumerate(times)]
    listener = Listener(clock)

    await run(pcap_files.write(tmp_path / "x", packets), "original", listener)

    assert [octets for _, octets in listener.seen] == [numbered(n) for n in range(4)]
    assert [round(sent, 2) for sent, _ in listener.seen] == [0.0, 2.0, 2.0, 2.5]


@pytest.mark.parametrize("count", [0, 1, 1024, 1025, 2500])
async def test_packets_a_second(clock: Clock, tmp_path: Path, count: int) -> None:
    path = pcap_files.write(tmp_path / "x", [numbered(number) for number in range(count)])
    listener = Listener(clock)

    told = await run(path, "500", listener)

    assert [octets for _, octets in listener.seen] == [numbered(n) for n in range(count)]
    for number, (sent, _) in enumerate(listener.seen):
        assert 0 <= sent - number / 500 < 1e-3
    assert told == sorted(told)
    assert told[-1:] == [path.stat().st_size] * bool(count)


async def test_as_fast_as_possible(clock: Clock, tmp_path: Path) -> None:
    packets = [(START + number * 3600 * SECOND, numbered(number)) for number in range(2500)]
    listener = Listener(clock)

    await run(pcap_files.write(tmp_path / "x", packets), "max", listener)

    assert len(listener.seen) == 2500
    assert not any(clock.naps)
    assert len(clock.naps) >= 3  # the loop's other work has its turn after every batch


async def test_a_stop_is_noticed_within_a_nap(clock: Clock, tmp_path: Path) -> None:
    packets = [(START + number * 3600 * SECOND, numbered(number)) for number in range(3)]
    stop = asyncio.Event()
    listener = Listener(clock)

    async def sleep(seconds: float) -> None:
        await Clock.sleep(clock, seconds)
        if len(clock.naps) == 5:
            stop.set()

    module.asyncio.sleep = sleep
    await run(pcap_files.write(tmp_path / "x", packets), "original", listener, stop)

    assert len(listener.seen) == 1
    assert len(clock.naps) == 5
    assert clock.now - 1000 < 6 * LONGEST_NAP


@pytest.mark.parametrize("speed", ["original", "max", "1000"])
async def test_the_count_ends_it(clock: Clock, tmp_path: Path, speed: str) -> None:
    packets = [(START + number * SECOND, numbered(number)) for number in range(2000)]
    listener = Listener(clock, limit=3)

    await run(pcap_files.write(tmp_path / "x", packets), speed, listener)

    assert clock.now - 1000 < 3
    assert len(listener.seen) <= 1024  # the pipeline leaves out what is too much in one batch


async def test_other_link_types_become_frames(clock: Clock, tmp_path: Path) -> None:
    packet = numbered(1)[14:]
    cooked = bytes.fromhex("0000 0001 0006 02000a0a0a0a 0000 0800") + packet
    tunnel, sock = recording.tunnel("gre://192.0.2.9")
    pipeline = recording.pipeline([tunnel], LoopGuard([]))

    await run(pcap_files.write(tmp_path / "x", [packet], linktype=101), "max", pipeline)
    await run(pcap_files.write(tmp_path / "y", [cooked], linktype=113), "max", pipeline)

    assert [packet[4 + 12 :] for packet in sock.packets] == [b"\x08\0" + packet] * 2
    with pytest.raises(UserError, match="link type 105 cannot be carried"):
        await run(pcap_files.write(tmp_path / "z", [packet], linktype=105), "max", pipeline)


async def test_up_to_the_damage(clock: Clock, tmp_path: Path) -> None:
    path = pcap_files.write(tmp_path / "x", [numbered(1), numbered(2)], tail=b"half a header")
    listener = Listener(clock)
    capture = open_capture(path)

    await replay(capture, listener, lambda: None, None, asyncio.Event(), lambda _: None)

    assert [octets for _, octets in listener.seen] == [numbered(1), numbered(2)]
    assert capture.damage
