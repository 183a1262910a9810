"""Streams: grouping, and loss counts that are exact, against a scalar oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.ledger import StreamLedger
from collector.streams import MOST_GAPS, WRAP, Sequence, StreamTable
from tunnelbridge.wire.layer import UNKNOWN, Kind


def account(*batches: list[int]) -> StreamLedger:
    ledger = StreamLedger("192.0.2.1", "gre", 7)
    sequence = Sequence(ledger)
    for batch in batches:
        sequence.take(np.array(batch, np.int64))
    return ledger


def told(ledger: StreamLedger) -> tuple[int, int, int, int]:
    return ledger.lost, ledger.reordered, ledger.duplicate, ledger.restarts


@pytest.mark.parametrize(
    ("batches", "lost_reordered_duplicate_restarts"),
    [
        ([[5, 6, 7], [8]], (0, 0, 0, 0)),
        ([[5, 6, 9]], (2, 0, 0, 0)),
        ([[5, 6], [9], [8]], (1, 1, 0, 0)),
        ([[5, 7, 6]], (0, 1, 0, 0)),
        ([[5, 5, 6, 6]], (0, 0, 2, 0)),
        ([[WRAP - 2, WRAP - 1, 0, 1]], (0, 0, 0, 0)),
        ([[WRAP - 2, 1]], (2, 0, 0, 0)),
        ([[100, 101, 0, 1, 2]], (0, 0, 0, 1)),
        ([[100, 101, 900_000, 900_001]], (0, 0, 0, 1)),
        ([[1, 4, 0]], (2, 0, 0, 1)),
    ],
)
def test_sequences(
    batches: list[list[int]], lost_reordered_duplicate_restarts: tuple[int, int, int, int]
) -> None:
    assert told(account(*batches)) == lost_reordered_duplicate_restarts


def test_hostile_jumps_cost_no_time_and_no_memory() -> None:
    ledger = StreamLedger("192.0.2.1", "erspan2", 7)
    sequence = Sequence(ledger)

    sequence.take(np.arange(2000, dtype=np.int64) * 65_000 % WRAP)  # pytest-timeout ends a slow one

    assert ledger.lost == 1999 * 64_999
    assert len(sequence.gaps) == MOST_GAPS


@given(st.permutations(range(1, 40)), st.data())
def test_any_order_of_a_whole_sequence_loses_nothing(order: list[int], data: st.DataObject) -> None:
    """The first number is where counting begins; what lay before it is late, not lost."""
    order = [0, *order]
    cut = data.draw(st.integers(1, 39))

    ledger = account(order[:cut], order[cut:])

    assert ledger.lost == 0
    assert ledger.duplicate == 0
    assert ledger.reordered == sum(
        1 for place, number in enumerate(order) if number < max(order[: place + 1])
    )


@given(st.sets(st.integers(1, 400), max_size=100))
def test_what_is_left_out_is_lost(missing: set[int]) -> None:
    sent = [number for number in range(402) if number not in missing]

    assert told(account(sent[:100], sent[100:])) == (len(missing), 0, 0, 0)


def test_streams_are_told_apart_by_source_encapsulation_and_identifier() -> None:
    table = StreamTable()
    source = np.zeros((6, 16), np.uint8)
    source[:, 10:12] = 0xFF
    source[:, 15] = [1, 2, 1, 1, 1, 1]
    source[5] = np.frombuffer(bytes.fromhex("20010db8000000000000000000000001"), np.uint8)
    table.take(
        source,
        np.array([Kind.GRE, Kind.GRE, Kind.VXLAN, Kind.GRE, Kind.GRE, Kind.GRE], np.uint8),
        np.array([7, 7, 7, 8, 7, UNKNOWN]),
        np.array([0, UNKNOWN, UNKNOWN, 4, 2, UNKNOWN]),
        np.array([60, 61, 62, 63, 64, 65]),
        np.array([False, True, False, False, True, False]),
        np.arange(6) + 100,
    )

    found = {
        (each.source, each.encapsulation, each.identifier): (
            each.packets,
            each.octets,
            each.truncated,
            each.lost,
        )
        for each in table.ledgers()
    }

    assert found == {
        ("0.0.0.1", "gre", 7): (2, 124, 1, 1),
        ("0.0.0.2", "gre", 7): (1, 61, 1, 0),
        ("0.0.0.1", "vxlan", 7): (1, 62, 0, 0),
        ("0.0.0.1", "gre", 8): (1, 63, 0, 0),
        ("2001:db8::1", "gre", None): (1, 65, 0, 0),
    }


def scalar_gaps(numbers: list[int]) -> list[int]:
    """Return how many numbers are passed over before each; late ones pass over none."""
    highest, gaps = numbers[0] - 1, []
    for number in numbers:
        gaps.append(max(0, number - highest - 1))
        highest = max(highest, number)
    return gaps


def take(table: StreamTable, streams: list[int], sequence: list[int], start: int = 0) -> tuple:
    count = len(streams)
    source = np.zeros((count, 16), np.uint8)
    source[:, 10:12] = 0xFF
    source[:, 15] = streams
    number, gap = table.take(
        source,
        np.full(count, Kind.GRE, np.uint8),
        np.full(count, 7),
        np.array(sequence, np.int64),
        np.full(count, 60),
        np.zeros(count, np.bool_),
        np.arange(count, dtype=np.int64) + start,
    )
    return number.tolist(), gap.tolist()


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 300)), max_size=60), st.integers(0, 60))
def test_each_frame_is_told_its_stream_and_the_gap_before_it(frames: list, cut: int) -> None:
    """Random numbers of four streams, mixed, in two batches; some frames have no number."""
    table = StreamTable()
    numbers = [number or UNKNOWN for _, number in frames]
    streams = [stream for stream, _ in frames]
    first = take(table, streams[:cut], numbers[:cut])
    second = take(table, streams[cut:], numbers[cut:])
    order, gaps = first[0] + second[0], first[1] + second[1]

    for stream in set(streams):
        places = [place for place, each in enumerate(streams) if each == stream]
        (name,) = {order[place] for place in places}
        assert table.ledgers()[name].source == f"0.0.0.{stream}"
        assert table.ledger(name) is table.ledgers()[name]
        known = [place for place in places if numbers[place] != UNKNOWN]
        if known:
            expected = scalar_gaps([numbers[place] for place in known])
            assert [gaps[place] for place in known] == expected
        assert all(gaps[place] == 0 for place in places if place not in known)
    assert sum(gaps) == sum(each.lost + each.reordered for each in table.ledgers())


def test_numbers_of_streams_never_change_and_times_are_those_of_arrival() -> None:
    table = StreamTable()

    assert take(table, [9, 9, 3], [1, 2, UNKNOWN], start=1000)[0] == [0, 0, 1]
    assert take(table, [3, 5, 9, 9], [UNKNOWN] * 4, start=2000)[0] == [1, 2, 0, 0]
    assert take(table, [], [])[0] == []

    seen = [(each.first_seen, each.last_seen) for each in table.ledgers()]
    assert seen == [(1000, 2003), (1002, 2000), (2001, 2001)]


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.streams.MOST_STREAMS", 3)
    table = StreamTable()
    count = 10
    number, _ = table.take(
        np.zeros((count, 16), np.uint8),
        np.full(count, Kind.VXLAN, np.uint8),
        np.arange(count),
        np.full(count, UNKNOWN),
        np.full(count, 60),
        np.zeros(count, np.bool_),
        np.zeros(count, np.int64),
    )

    ledgers = table.ledgers()

    assert len(ledgers) == 4
    assert ledgers[-1].source == "other"
    assert sum(each.packets for each in ledgers) == count
    assert number.tolist() == [0, 1, 2] + [3] * 7
    assert table.ledger(3) is ledgers[-1]
