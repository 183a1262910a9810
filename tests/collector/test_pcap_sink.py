"""The pcap sink: bounded, never blocking, and every frame written or counted as dropped."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pcap_files
import pytest
import structlog
from delivered import delivery

import lab
from collector.delivery import Delivery
from collector.sinks import pcap, queued
from collector.sinks.capture_file import CaptureFile
from collector.sinks.options import SinkOptions
from collector.sinks.pcap import PcapSink
from collector.sinks.queued import SMALL, SPARE_SLABS
from tunnelbridge.batch import Batch
from tunnelbridge.errors import UserError
from tunnelbridge.linux.record_writer import Written
from tunnelbridge.linux.slab import Slab, SlabPool

SLOTS, SIZE = 64, 2000
assert SLOTS * SIZE >= SMALL
HELD_SLABS = 6 - SPARE_SLABS


@pytest.fixture(autouse=True)
def plain_logging() -> None:
    structlog.reset_defaults()  # another test may have sent it to a file that is closed by now


@pytest.fixture
def pool() -> SlabPool:
    return SlabPool(6, SLOTS)


def fill(slab: Slab, count: int, size: int, first: int = 0) -> Batch:
    """Put numbered frames into a slab, as receiving does."""
    start = np.arange(count, dtype=np.int64) * slab.small
    for number, at in enumerate(start.tolist()):
        slab.memory[at : at + size] = np.frombuffer(frame(first + number, size), np.uint8)
    length = np.full(count, size, np.int64)
    return Batch(
        slab.memory, start, length, length + 5, np.arange(count) + 7, np.zeros(count, np.uint8)
    )


def frame(number: int, size: int) -> bytes:
    return number.to_bytes(4) + bytes([number % 251]) * (size - 4)


def take(pool: SlabPool) -> Slab:
    slab = pool.take()
    assert slab is not None
    return slab


class Reader:
    """The other end of a pipe; reads only when told to."""

    def __init__(self) -> None:
        self.fd, self.write_end = os.pipe()
        self.octets = b""
        self._thread: threading.Thread | None = None

    def fill_pipe(self) -> int:
        """Write until nothing more fits; return how much that was."""
        os.set_blocking(self.write_end, False)
        written = 0
        try:
            while True:
                written += os.write(self.write_end, bytes(4096))
        except BlockingIOError:
            os.set_blocking(self.write_end, True)
            return written

    def start(self) -> None:
        def work() -> None:
            while chunk := os.read(self.fd, 1 << 20):
                self.octets += chunk

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def finish(self) -> bytes:
        assert self._thread is not None
        self._thread.join()
        return self.octets

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Give sinks a pipe that blocks, with its reader asleep."""
    reader = Reader()
    monkeypatch.setattr(pcap, "open_pcap", lambda _: reader.write_end)
    yield reader
    reader.close()


@pytest.mark.parametrize("count", [0, 1, SLOTS])
@pytest.mark.parametrize("size", [60, SIZE])
def test_a_file_holds_what_was_put(tmp_path: Path, pool: SlabPool, count: int, size: int) -> None:
    path = tmp_path / "x.pcap"
    sink = PcapSink(SinkOptions(str(path)))
    for first in (0, count):
        slab = take(pool)
        sink.put(delivery(fill(slab, count, size, first), slab))
        slab.release()
    sink.close()

    expected = [(number % count + 7, frame(number, size), size + 5) for number in range(2 * count)]
    assert pcap_files.parse(path.read_bytes()) == expected
    assert (sink.ledger.delivered, sink.ledger.octets) == (2 * count, 2 * count * size)
    assert sink.ledger.dropped == Counter()
    assert sink.ledger.name == f"pcap {path}"
    assert pool.free == 6


def test_a_stalled_reader_costs_its_own_frames_only(reader: Reader, pool: SlabPool) -> None:
    most = 2 << 20
    sink = PcapSink(SinkOptions("-", queue_octets=most))
    frames = 0
    while not sink.ledger.dropped:
        slab = take(pool)  # there is always one: the sink never holds them all
        sink.put(delivery(fill(slab, SLOTS, SIZE, frames), slab))
        slab.release()
        frames += SLOTS
        assert pool.free >= 6 - HELD_SLABS
        assert frames * SIZE < 2 * most
    assert frames * SIZE > most
    assert pool.free == 6 - HELD_SLABS
    slab = take(pool)
    sink.put(delivery(fill(slab, 1, 60, frames), slab))  # a small one still fits
    slab.release()

    reader.start()
    sink.close()

    written = pcap_files.parse(reader.finish())
    kept = [*range(frames - SLOTS), frames]
    assert [int.from_bytes(octets[:4]) for _, octets, _ in written] == kept
    assert all(octets == frame(int.from_bytes(octets[:4]), len(octets)) for _, octets, _ in written)
    assert sink.ledger.dropped == Counter({"queue-full": SLOTS})
    assert sink.ledger.delivered == len(kept)
    assert pool.free == 6


def test_small_batches_are_copied(reader: Reader, pool: SlabPool) -> None:
    sink = PcapSink(SinkOptions("-"))
    padding = reader.fill_pipe()  # behind the file header
    slab = take(pool)
    for number in range(9):
        sink.put(delivery(fill(slab, 2, 60, number * 2), slab))
        slab.memory[:] = 0xEE
    headed = fill(slab, 2, 60, 100)
    headed.head = np.frombuffer(b"ABCDEF", np.uint8)
    headed.head_start, headed.head_length = np.array([0, 2]), np.array([2, 4])
    sink.put(delivery(headed, slab))
    slab.memory[:] = 0xEE
    slab.release()
    assert pool.free == 6

    reader.start()
    sink.close()

    octets = reader.finish()
    written = pcap_files.parse(octets[:24] + octets[24 + padding :])
    expected = [frame(number, 60) for number in range(18)]
    expected += [b"AB" + frame(100, 60), b"CDEF" + frame(101, 60)]
    assert [packet for _, packet, _ in written] == expected


def test_what_is_written_makes_room_and_large_batches_are_not_copied(
    tmp_path: Path, pool: SlabPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Delivery, "copied", lambda _: pytest.fail("was copied"))
    sink = PcapSink(SinkOptions(str(tmp_path / "x"), queue_octets=2 * SLOTS * SIZE))
    for number in range(3 * HELD_SLABS):
        slab = take(pool)
        sink.put(delivery(fill(slab, SLOTS, SIZE), slab))
        slab.release()
        lab.until(lambda n=number: sink.ledger.delivered == (n + 1) * SLOTS, what="delivered")
    sink.close()

    assert sink.ledger.dropped == Counter()


def test_one_batch_may_be_larger_than_the_queue(tmp_path: Path, pool: SlabPool) -> None:
    sink = PcapSink(SinkOptions(str(tmp_path / "x"), queue_octets=100))
    slab = take(pool)
    sink.put(delivery(fill(slab, 3, 60), slab))
    slab.release()
    sink.close()

    assert sink.ledger.delivered == 3


@pytest.mark.parametrize("blocks", [True, False])
def test_closing_does_not_wait_for_a_reader_that_sleeps(
    reader: Reader, pool: SlabPool, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pcap, "PATIENCE", 0.2)
    monkeypatch.setattr(queued, "PATIENCE", 0.2)
    sink = PcapSink(SinkOptions("-"))
    reader.fill_pipe()
    os.set_blocking(reader.write_end, blocks)
    for _ in range(20):
        slab = take(pool)
        sink.put(delivery(fill(slab, SLOTS, SIZE), slab))
        slab.release()
    began = time.monotonic()

    sink.close()

    assert time.monotonic() - began < 1
    assert sink.ledger.total() == sink.ledger.dropped.total() == 20 * SLOTS
    reader.start()  # lets a writer that is stuck go on, and end
    sink._thread.join(10)
    assert not sink._thread.is_alive()
    assert sink.ledger.total() == 20 * SLOTS
    reader.finish()


def test_a_reader_that_is_gone(reader: Reader, pool: SlabPool) -> None:
    sink = PcapSink(SinkOptions("-"))
    reader.close()
    slab = take(pool)
    for number in range(3):
        sink.put(delivery(fill(slab, SLOTS, SIZE, number), slab))
    slab.release()
    lab.until(sink.is_gone, what="gone")
    sink.close()

    assert sink.ledger.dropped == Counter({"reader-gone": 3 * SLOTS})
    assert sink.ledger.delivered == 0
    assert pool.free == 6


def test_a_disk_that_is_full_for_a_while_is_told_once(
    tmp_path: Path, pool: SlabPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = PcapSink(SinkOptions(str(tmp_path / "x")))
    told: list[str] = []
    sink._log = type("Log", (), {
        "error": lambda _, event, **__: told.append(event),
        "info": lambda _, event, **__: told.append(event),
    })()  # fmt: skip
    write, full = CaptureFile.write, threading.Event()
    slab = take(pool)

    def put(frames: int) -> None:
        before = sink.ledger.delivered + sink.ledger.dropped.total()
        sink.put(delivery(fill(slab, frames, 60), slab))
        lab.until(
            lambda: sink.ledger.delivered + sink.ledger.dropped.total() == before + frames,
            what="put",
        )

    def failing(self: CaptureFile, delivery: Delivery) -> Written:
        if full.is_set():
            return Written(1, 60, "disk-full")
        return write(self, delivery)

    monkeypatch.setattr(CaptureFile, "write", failing)
    put(2)
    full.set()
    put(5)
    put(5)
    full.clear()
    put(2)
    slab.release()
    sink.close()

    assert told == ["cannot write", "writing again"]
    assert sink.ledger.dropped == Counter({"disk-full": 8})
    assert sink.ledger.delivered == 2 + 1 + 1 + 2
    assert not sink.is_gone()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}: {os.strerror(errno.EISDIR)}"):
        PcapSink(SinkOptions(str(tmp_path)))
    assert threading.active_count() == threads
