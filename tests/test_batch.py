"""A batch is head + body; every operation is checked against plain bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelbridge.batch import OUTBOUND, Batch, from_packets

SIZES = [0, 1, 256, 257]


def with_heads(heads: list[bytes], bodies: list[bytes]) -> Batch:
    """Return packets of a head and a body each."""
    batch, head = from_packets(bodies), from_packets(heads)
    batch.head, batch.head_start, batch.head_length = head.memory, head.start, head.length
    batch.wire_length = batch.total_length
    return batch


def octets(batch: Batch) -> list[bytes]:
    return [batch.octets(index) for index in range(len(batch))]


@pytest.mark.parametrize("count", SIZES)
def test_packets_come_back_as_they_went_in(count: int) -> None:
    packets = [bytes([index % 251]) * (index % 70) for index in range(count)]
    batch = from_packets(packets, timestamp=7, direction=OUTBOUND)

    assert octets(batch) == packets
    assert batch.timestamp.tolist() == [7] * count
    assert batch.direction.tolist() == [OUTBOUND] * count


packets_with_heads = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=9)


@given(packets_with_heads, st.integers(0, 70))
def test_cut_keeps_the_first_octets_and_the_original_length(
    parts: list[tuple[bytes, bytes]], limit: int
) -> None:
    batch = with_heads([head for head, _ in parts], [body for _, body in parts])

    assert octets(batch.cut(limit)) == [(head + body)[:limit] for head, body in parts]
    assert batch.cut(limit).wire_length.tolist() == [len(head + body) for head, body in parts]


@given(packets_with_heads, st.integers(0, 70))
def test_skip_leaves_out_the_first_octets(parts: list[tuple[bytes, bytes]], skip: int) -> None:
    batch = with_heads([head for head, _ in parts], [body for _, body in parts])

    assert octets(batch.skip(skip)) == [(head + body)[skip:] for head, body in parts]


@given(st.lists(st.binary(max_size=40), max_size=9), st.integers(0, 50))
def test_cut_and_skip_without_heads(bodies: list[bytes], number: int) -> None:
    batch = from_packets(bodies)

    assert octets(batch.cut(number)) == [body[:number] for body in bodies]
    assert octets(batch.skip(number)) == [body[number:] for body in bodies]


def test_select_takes_every_column_along() -> None:
    batch = with_heads([b"a", b"b", b"c"], [b"1", b"2", b"3"])
    batch.vlan = np.array([1, 2, 3])

    chosen = batch.select(np.array([2, 0]))

    assert octets(chosen) == [b"c3", b"a1"]
    assert chosen.vlan is not None
    assert chosen.vlan.tolist() == [3, 1]
