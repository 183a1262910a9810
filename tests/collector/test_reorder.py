"""Several streams into one output in the order of time, against a sorted list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.delivery import Delivery
from collector.reorder import Reorderer
from collector.windows import parse_window
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UsageError

WINDOW = 1000


def delivery(frames: list[tuple[int, int]], stream: int = 0) -> Delivery:
    """Return frames of (timestamp, number); the number is in the octets too."""
    batch = from_packets([number.to_bytes(20, "big") for _, number in frames])
    batch.timestamp = np.array([time for time, _ in frames], np.int64)
    count = len(frames)
    gap = np.array([number % 3 for _, number in frames], np.int64)
    cut = np.array([number % 2 == 1 for _, number in frames], np.bool_)
    return Delivery(batch, np.full(count, stream), gap, cut)


def read(found: Delivery | None) -> list[tuple[int, int]]:
    """Return (timestamp, number) and check that all columns still belong together."""
    if found is None:
        return []
    numbers = [int.from_bytes(found.frames.octets(each), "big") for each in range(len(found))]
    assert found.gap.tolist() == [number % 3 for number in numbers]
    assert found.truncated.tolist() == [number % 2 == 1 for number in numbers]
    return list(zip(found.frames.timestamp.tolist(), numbers, strict=True))


def test_two_streams_that_overlap_come_out_in_order() -> None:
    work = Reorderer(WINDOW)
    assert work.put(delivery([(100, 1), (300, 3), (500, 5)]), 600) is None
    assert work.put(delivery([(200, 2), (400, 4), (600, 6)], stream=1), 700) is None
    assert work.held == 6
    assert read(work.due(1350)) == [(100, 1), (200, 2), (300, 3)]
    assert read(work.due(1350)) == []
    found = work.flush()
    assert read(found) == [(400, 4), (500, 5), (600, 6)]
    assert found is not None
    assert found.stream.tolist() == [1, 0, 1]
    assert (work.late, work.hurried, work.held) == (0, 0, 0)


def test_equal_times_keep_the_order_of_arrival() -> None:
    work = Reorderer(WINDOW)
    work.put(delivery([(100, number) for number in range(50)]), 100)
    work.put(delivery([(100, number) for number in range(50, 99)], stream=1), 100)
    assert read(work.flush()) == [(100, number) for number in range(99)]


def test_late_frames_are_counted_and_go_on_at_once() -> None:
    work = Reorderer(WINDOW)
    work.put(delivery([(5000, 1)]), 5000)
    assert read(work.due(6000)) == [(5000, 1)]
    assert read(work.put(delivery([(4999, 2), (5000, 3), (6500, 4)]), 6500)) == [
        (4999, 2),
        (5000, 3),
    ]
    assert work.late == 1  # 5000 is not before 5000
    assert read(work.flush()) == [(6500, 4)]


def test_a_clock_that_runs_ahead_holds_back_nobody() -> None:
    work = Reorderer(WINDOW)
    work.put(delivery([(10**18, 1), (100, 2)]), 200)
    assert read(work.due(1300)) == [(100, 2), (10**18, 1)]  # counted as come at 200
    assert read(work.put(delivery([(900, 3)]), 900)) == []
    assert work.late == 0


def test_a_full_buffer_lets_the_oldest_go() -> None:
    work = Reorderer(WINDOW, most_octets=200)
    assert work.put(delivery([(10 * number, number) for number in range(10)]), 100) is None
    found = work.put(delivery([(5, 10)]), 100)
    assert read(found) == [(0, 0), (5, 10), (10, 1), (20, 2), (30, 3), (40, 4)]
    assert (work.hurried, work.held) == (6, 5)
    assert read(work.flush()) == [(10 * number, number) for number in range(5, 10)]


def test_what_is_due_and_what_must_go_come_together_in_order() -> None:
    work = Reorderer(WINDOW, most_octets=100)
    work.put(delivery([(0, 0), (1, 1)]), 10)
    found = work.put(delivery([(1500 + number, number) for number in range(2, 9)]), 1600)
    assert read(found) == [(0, 0), (1, 1), *((1500 + number, number) for number in range(2, 7))]
    assert (work.hurried, work.held) == (5, 2)


def test_nothing_in_nothing_out() -> None:
    work = Reorderer(WINDOW)
    assert work.put(delivery([]), 5) is None
    assert work.due(10**6) is None
    assert work.flush() is None


def test_waiting_frames_are_copies() -> None:
    given_in = delivery([(1, 7), (2, 8)])
    memory = given_in.frames.memory.copy()
    given_in.frames.memory = memory
    work = Reorderer(WINDOW)
    work.put(given_in, 5)
    memory[:] = 0xEE
    assert read(work.flush()) == [(1, 7), (2, 8)]


def test_heads_go_along() -> None:
    frames = from_packets([b"body" * 30, b"tail" * 3])
    head = np.frombuffer(b"HEADhead14octs", np.uint8)
    batch = Batch(
        frames.memory, frames.start, frames.length, frames.wire_length, frames.timestamp,
        frames.direction, head, np.array([0, 0]), np.array([14, 0]),
    )  # fmt: skip
    work = Reorderer(WINDOW)
    none = np.zeros(2, np.int64)
    work.put(Delivery(batch, none, none, np.zeros(2, np.bool_)), 0)
    found = work.flush()
    assert found is not None
    assert [found.frames.octets(number) for number in (0, 1)] == [
        b"HEADhead14octs" + b"body" * 30,
        b"tail" * 3,
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.lists(st.integers(-3000, 300), max_size=6)), max_size=12
    )
)
def test_scalar_code_agrees(steps: list[tuple[int, list[int]]]) -> None:
    """Release at once everything up to now - window, sorted; a frame before the latest gone is late."""
    work, buffer, gone, late, now, number = Reorderer(WINDOW), [], -(10**9), 0, 10_000, 0
    for step, offsets in steps:
        now += step
        frames = []
        for offset in offsets:
            frames.append((now + offset, number))
            buffer.append((min(now + offset, now), number, now + offset))
            number += 1
        expected = sorted(each for each in buffer if each[0] <= now - WINDOW)
        buffer = [each for each in buffer if each[0] > now - WINDOW]
        late += sum(each[0] < gone for each in expected)
        gone = max([gone, *(each[0] for each in expected)])
        assert read(work.put(delivery(frames), now)) == [(told, num) for _, num, told in expected]
        assert work.late == late
        assert work.held == len(buffer)
    assert sorted(read(work.flush())) == sorted((told, num) for _, num, told in buffer)


@pytest.mark.parametrize(
    ("text", "window"),
    [("5", 5_000_000), ("500us", 500_000), ("1.5s", 1_500_000_000), ("0.25ms", 250_000)],
)
def test_windows(text: str, window: int) -> None:
    assert parse_window(text, "--dedup") == window


@pytest.mark.parametrize("text", ["", "0", "-1", "5 ms", "61s", "5ns", "٥", "1e3", "ms"])
def test_wrong_windows(text: str) -> None:
    with pytest.raises(UsageError, match=r"--dedup .*expected milliseconds"):
        parse_window(text, "--dedup")
