"""Deliveries: selecting keeps columns together, copies hold the same octets."""

from __future__ import annotations

import numpy as np
import pytest
from delivered import delivery
from hypothesis import given
from hypothesis import strategies as st

from collector.delivery import Delivery
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.linux.slab import SlabPool

PACKETS = [bytes([number]) * (60 + 7 * number) for number in range(6)]


def octets(of: Delivery) -> list[bytes]:
    return [of.frames.octets(index) for index in range(len(of))]


def slices(memory: bytes, start: list[int], length: list[int]) -> Batch:
    batch = from_packets([b""] * len(start))
    batch.memory = np.frombuffer(memory, np.uint8)
    batch.start, batch.length = np.array(start, np.int64), np.array(length, np.int64)
    return batch


@pytest.mark.parametrize(
    "index",
    [[], [0], [5, 0, 0], list(range(6)), [True, False, True, False, False, True], [False] * 6],
)
def test_selecting_keeps_columns_together(index: list[int] | list[bool]) -> None:
    whole = delivery(
        from_packets(PACKETS), stream=range(6), gap=range(10, 16), truncated=[0, 1, 0, 1, 0, 1]
    )
    whole.outer, whole.index = whole.frames, np.arange(6) * 2
    places = np.array(index, np.bool_ if index and isinstance(index[0], bool) else np.int64)

    chosen = whole.select(places)

    which = np.arange(6)[places].tolist()
    assert len(chosen) == len(which)
    assert octets(chosen) == [PACKETS[each] for each in which]
    assert chosen.stream.tolist() == which
    assert chosen.gap.tolist() == [10 + each for each in which]
    assert chosen.truncated.tolist() == [each % 2 == 1 for each in which]
    assert chosen.index is not None
    assert chosen.index.tolist() == [2 * each for each in which]
    assert chosen.outer is whole.outer  # by reference
    assert len(whole) == 6


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=30),
    st.integers(0, 400),
)
def test_a_copy_holds_the_same_octets(places: list, spare: int) -> None:
    """Wherever the slices lie: beside the memory's end, over each other, empty."""
    memory = np.random.default_rng(7).bytes(800 + spare)
    batch = slices(memory, [start for start, _ in places], [length for _, length in places])
    batch.wire_length = batch.length + 1000
    original = delivery(batch)
    before = octets(original)

    copy = original.copied()

    assert octets(copy) == before
    assert copy.frames.wire_length.tolist() == batch.wire_length.tolist()
    assert octets(copy.cut(33)) == [each[:33] for each in before]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 128, 129])
def test_memory_of_any_size_is_copied(size: int) -> None:
    memory = bytes(range(size))
    lengths = [size, 0, min(size, 65)]
    copy = delivery(slices(memory, [0, 0, 0], lengths)).copied()
    assert octets(copy) == [memory[:length] for length in lengths]
    copy = delivery(slices(memory, [0], lengths[2:])).copied()
    assert octets(copy) == [memory[:65]]


def test_a_copy_is_independent_of_the_slab_and_small() -> None:
    slab = SlabPool(1, 8).take()
    assert slab is not None
    slab.memory[:2000] = 1
    batch = slices(b"", [0, 1000, 500], [60, 60, 60])
    batch.memory = slab.memory
    copy = delivery(batch, slab).copied()

    slab.memory[:2000] = 2

    assert octets(copy) == [b"\1" * 60] * 3
    assert (copy.slab, copy.outer, copy.index) == (None, None, None)
    assert copy.frames.memory.size <= 3 * (60 + 64)
    slab.release()
