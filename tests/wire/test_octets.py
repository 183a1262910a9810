"""Gathering headers and RFC 1071 sums, against octet-by-octet code."""

from __future__ import annotations

import random

import numpy as np
import pytest
from outer import internet_checksum

from tunnelbridge.wire.octets import checksum, fits, fold, load, ragged, sum_words

HEADER = np.dtype([("a", "u1"), ("b", ">u2"), ("c", ">u4")])
MEMORY = np.frombuffer(bytes(range(1, 60)), np.uint8)


def columns(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_load_reads_network_order_at_any_offset() -> None:
    for offset in range(len(MEMORY) - 6):
        record = load(MEMORY, columns(offset), HEADER)[0]
        octets = MEMORY[offset : offset + 7].tobytes()
        expected = octets[0], int.from_bytes(octets[1:3]), int.from_bytes(octets[3:7])
        assert record.item() == expected


def test_load_never_reads_beyond_memory() -> None:
    last = len(MEMORY) - 7
    records = load(MEMORY, columns(last, last + 1, 1 << 40), HEADER)
    assert records.shape == (3,)
    assert (records == records[0]).all()
    assert not load(MEMORY[:6], columns(0, 5), HEADER)["c"].any()
    assert load(MEMORY[:0], columns(0), HEADER).shape == (1,)
    assert load(MEMORY, columns(), HEADER).shape == (0,)


def test_load_leaves_read_only_memory_alone() -> None:
    assert not MEMORY.flags.writeable
    load(MEMORY, columns(3), HEADER)["a"] = 0
    assert MEMORY[3] == 4


def test_fits() -> None:
    assert fits(columns(0, 0, 5, 9), columns(7, 6, 12, 9), HEADER).tolist() == [
        True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 2, 3, 64, 65, 1001])
def test_sums_are_those_of_rfc_1071(size: int) -> None:
    chance = random.Random(size)
    octets = chance.randbytes(size)
    memory = np.frombuffer(octets, np.uint8)
    slices = [(size - tail, tail) for tail in range(min(size, 9) + 1)]  # up to the end of memory
    slices += [(0, size)] + [
        (start, chance.randrange(size - start + 1)) for start in range(min(size, 40))
    ]
    start, length = (columns(*each) for each in zip(*slices, strict=True))
    expected = [internet_checksum(octets[at : at + octets_in]) for at, octets_in in slices]
    assert checksum(sum_words(memory, start, length)).tolist() == expected
    assert checksum(sum_words(memory, start[::-1], length[::-1])).tolist() == expected[::-1]


def test_rfc_1071_example() -> None:
    memory = np.frombuffer(bytes.fromhex("0001f203f4f5f6f7"), np.uint8)  # RFC 1071 §3
    assert sum_words(memory, columns(0), columns(8)).tolist() == [0xDDF2]
    assert checksum(sum_words(memory, columns(0), columns(8))).tolist() == [0x220D]


def test_sums_of_many_octets_do_not_overflow() -> None:
    memory = np.full(1 << 20, 0xFF, np.uint8)
    assert sum_words(memory, columns(0, 1), columns(1 << 20, 70001)).tolist() == [0xFFFF, 0xFF00]


def test_fold_carries_around() -> None:
    assert fold(columns(0, 0xFFFF, 0x10000, 0x1FFFF, 0xFFFF_FFFF_FFFF)).tolist() == [
        0, 0xFFFF, 1, 1, 0xFFFF,
    ]  # fmt: skip


def test_ragged() -> None:
    assert ragged(columns(5, 9, 2), columns(3, 0, 2)).tolist() == [5, 6, 7, 2, 3]
    assert ragged(columns(), columns()).tolist() == []
