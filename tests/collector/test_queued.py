"""Queued sinks: the writer's half may stall, fail or be wrong without touching anybody else."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import structlog
from delivered import delivery

import lab
from collector.delivery import Delivery
from collector.sinks import Sink, queued
from collector.sinks.options import SinkOptions
from collector.sinks.queued import SMALL, SPARE_SLABS, QueuedSink
from tunnelbridge.batch import Batch
from tunnelbridge.errors import UsageError
from tunnelbridge.linux.pcap_writer import Written
from tunnelbridge.linux.slab import Slab, SlabPool

SLABS, SLOTS, SIZE = 6, 64, 2000
assert SLOTS * SIZE >= SMALL


class Recorder(QueuedSink):
    """Keeps what is written; waits at a gate, and does what it is told to first."""

    def __init__(self, name: str = "recorder", **options: object) -> None:
        super().__init__(name, SinkOptions("x", **options))  # type: ignore[arg-type]
        self.gate = threading.Event()
        self.gate.set()
        self.frames: list[bytes] = []
        self.calls: list[object] = []
        self.act: Callable[[], object] = lambda: None
        self.start()

    def write(self, delivery: Delivery) -> Written:
        self.gate.wait(20)
        self.calls.append(len(delivery))
        result = self.act()
        octets = [delivery.frames.octets(index) for index in range(len(delivery))]
        if isinstance(result, Written):
            octets = octets[: result.packets]
        self.frames += octets
        return result if isinstance(result, Written) else Written(
            len(octets), sum(map(len, octets)), None
        )  # fmt: skip

    def on_tick(self, now: int) -> None:
        self.calls.append(("tick", now))
        self.act()

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    structlog.reset_defaults()
    monkeypatch.setattr(queued, "PATIENCE", 0.2)


@pytest.fixture
def sinks() -> Iterator[list[Recorder]]:
    opened: list[Recorder] = []
    yield opened
    for sink in opened:
        sink.gate.set()
        sink._thread.join(5)
        assert not sink._thread.is_alive()


def fill(slab: Slab, count: int, first: int, size: int = SIZE) -> Batch:
    start = np.arange(count, dtype=np.int64) * slab.small
    for number, at in enumerate(start.tolist()):
        slab.memory[at : at + size] = np.frombuffer(frame(first + number, size), np.uint8)
    length = np.full(count, size, np.int64)
    return Batch(
        slab.memory, start, length, length, np.zeros(count, np.int64), np.zeros(count, np.uint8)
    )


def frame(number: int, size: int = SIZE) -> bytes:
    return (number.to_bytes(4) * (size // 4 + 1))[:size]


def put(pool: SlabPool, sinks: list[Recorder], count: int, first: int, size: int = SIZE) -> None:
    """Receive a batch as the collector does, and give it to all sinks."""
    slab = pool.take()
    assert slab is not None, "receiving found no slab"
    given = delivery(fill(slab, count, first, size), slab)
    for sink in sinks:
        sink.put(given)
    slab.release()


def until_written(sink: Recorder, count: int) -> None:
    lab.until(lambda: sink.ledger.delivered == count, what=f"{count} delivered")


def test_a_queued_sink_is_a_sink(sinks: list[Recorder]) -> None:
    sink: Sink = Recorder()
    assert not sink.is_gone()
    sink.close()


@pytest.mark.parametrize("size", [60, SIZE])
def test_one_stalled_sink_costs_the_others_nothing(sinks: list[Recorder], size: int) -> None:
    """The stalled one holds its queue full and as many slabs as it may; the others lose nothing."""
    pool = SlabPool(SLABS, SLOTS)
    stalled = [Recorder("stalled", queue_octets=16 * SLOTS * size) for _ in range(2)]
    others = [Recorder("good"), Recorder("better")]
    sinks += stalled + others
    for sink in stalled:
        sink.gate.clear()
    rounds = 60

    for number in range(rounds):
        put(pool, sinks, SLOTS, number * SLOTS, size)
        for sink in others:
            until_written(sink, (number + 1) * SLOTS)

    for sink in others:
        assert sink.frames == [frame(number, size) for number in range(rounds * SLOTS)]
        assert sink.ledger.dropped == Counter()
    for sink in stalled:
        assert sink.ledger.queued + sink.ledger.dropped["queue-full"] == rounds * SLOTS
        assert sink.ledger.dropped["queue-full"] > 0
    assert pool.free >= SPARE_SLABS
    for sink in stalled:
        sink.gate.set()
        until_written(sink, rounds * SLOTS - sink.ledger.dropped["queue-full"])
        expected = [frame(number, size) for number in range(sink.ledger.delivered)]
        assert sink.frames == expected  # what was queued was not overwritten meanwhile
    for sink in sinks:
        sink.close()
    lab.until(lambda: pool.free == SLABS, what="all slabs given back")


def test_all_sinks_together_leave_slabs_to_receive_into(sinks: list[Recorder]) -> None:
    """Each alone may hold slabs that the others have let go of."""
    pool = SlabPool(SLABS, SLOTS)
    for _ in range(3):
        sinks.append(Recorder())
        sinks[-1].gate.clear()
    for number in range(12):
        put(pool, [sinks[number % 3]], SLOTS, 0)
        assert pool.free >= SPARE_SLABS
    assert pool.free == SPARE_SLABS
    for sink in sinks:
        sink.gate.set()
        until_written(sink, 4 * SLOTS)
        sink.close()
    assert pool.free == SLABS


def test_a_bug_in_one_sink_is_told_once_and_its_frames_counted(
    sinks: list[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    pool = SlabPool(SLABS, SLOTS)
    wrong, good = Recorder("wrong"), Recorder("good")
    sinks += [wrong, good]
    wrong.act = lambda: 1 // 0
    for number in range(3):
        put(pool, sinks, SLOTS, number * SLOTS)
    until_written(good, 3 * SLOTS)
    lab.until(lambda: wrong.ledger.dropped["bug"] == 3 * SLOTS, what="dropped")
    wrong.act = lambda: None
    put(pool, sinks, SLOTS, 0)
    until_written(wrong, SLOTS)  # it goes on if it can
    for sink in sinks:
        sink.close()

    told = capsys.readouterr().out
    assert told.count("ZeroDivisionError") == 1
    assert "a bug in this sink" in told
    assert wrong.ledger.total() == good.ledger.total() == 4 * SLOTS
    assert pool.free == SLABS


def test_ticks_come_in_turn_and_do_not_pile_up(sinks: list[Recorder]) -> None:
    sink = Recorder()
    sinks.append(sink)
    pool = SlabPool(SLABS, SLOTS)
    sink.gate.clear()
    put(pool, sinks, 2, 0)
    for now in range(100):
        sink.tick(now)
    put(pool, sinks, 3, 0)
    sink.gate.set()
    lab.until(lambda: len(sink.calls) == 3, what="calls")
    sink.tick(100)
    lab.until(lambda: len(sink.calls) == 4, what="calls")
    sink.close()

    assert sink.calls == [2, ("tick", 0), 3, ("tick", 100), "finish"]


def test_a_bug_in_a_tick_does_not_end_the_sink(sinks: list[Recorder]) -> None:
    sink = Recorder()
    sinks.append(sink)
    sink.act = lambda: 1 // 0
    sink.tick(5)
    lab.until(lambda: sink.calls, what="tick")
    sink.act = lambda: None
    put(SlabPool(SLABS, SLOTS), sinks, 2, 0)
    until_written(sink, 2)
    sink.close()
    assert sink.calls[-1] == "finish"


def test_what_is_not_written_is_counted_by_cause(sinks: list[Recorder]) -> None:
    sink = Recorder()
    sinks.append(sink)
    pool = SlabPool(SLABS, SLOTS)
    for result in (Written(3, 3 * SIZE, "disk-full"), Written(0, 0, "odd")):
        sink.act = lambda result=result: result
        total = sink.ledger.total()
        put(pool, sinks, 5, 0)
        lab.until(
            lambda total=total: sink.ledger.total() == total + 5 and not sink.ledger.queued,
            what="accounted",
        )
    sink.close()

    assert (sink.ledger.delivered, sink.ledger.octets) == (3, 3 * SIZE)
    assert sink.ledger.dropped == Counter({"disk-full": 2, "odd": 5})


def test_the_filter_comes_before_the_queue(sinks: list[Recorder]) -> None:
    """What the filter takes out needs no room, and what is cut needs less."""
    sink = Recorder(expression="ether[3] & 1 = 0", snaplen=100, queue_octets=3 * 100)
    sinks.append(sink)
    sink.gate.clear()
    pool = SlabPool(SLABS, SLOTS)
    for number in range(3):
        put(pool, sinks, 2, 2 * number)
    assert sink.ledger.queued == sink.ledger.filtered == 3
    put(pool, sinks, 2, 6)
    assert sink.ledger.dropped == Counter({"queue-full": 1})
    assert pool.free == SLABS  # two frames of 100 octets are copied
    sink.gate.set()
    sink.close()

    assert sink.frames == [frame(number)[:100] for number in (0, 2, 4)]
    assert (sink.ledger.total(), sink.ledger.filtered) == (8, 4)


def test_an_empty_batch_is_nothing(sinks: list[Recorder]) -> None:
    sink = Recorder()
    sinks.append(sink)
    put(SlabPool(SLABS, SLOTS), sinks, 0, 0)
    sink.close()
    assert sink.calls == ["finish"]
    assert sink.ledger.total() == 0


def test_a_writer_that_is_stuck_is_left_behind(sinks: list[Recorder]) -> None:
    pool = SlabPool(SLABS, SLOTS)
    sink = Recorder()
    sinks.append(sink)
    sink.gate.clear()
    for _ in range(3):
        put(pool, sinks, SLOTS, 0)

    sink.close()

    assert sink.ledger.dropped == Counter({"writer-stuck": 3 * SLOTS})
    sink.gate.set()
    sink._thread.join(5)
    assert sink.ledger.total() == sink.ledger.dropped.total() == 3 * SLOTS
    assert sink.calls == [SLOTS, "finish"]  # the others came too late
    assert pool.free == SLABS


def test_a_wrong_filter_starts_no_thread() -> None:
    threads = threading.active_count()
    with pytest.raises(UsageError, match="syntax error"):
        Recorder(expression="prot 7")
    assert threading.active_count() == threads
