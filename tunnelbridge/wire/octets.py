"""Load header records from anywhere in a batch's memory, and sum octets as RFC 1071 does.

``load`` is the one gather all decoders use: a view of the memory with stride 1, indexed by offset,
gives each packet's header as a record of a structured dtype in network byte order. It costs about
3 ns a packet whatever the header's length (docs/decisions/0002-gather-headers-as-records.md).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets


def load(memory: Octets, position: Column, header: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return one ``header`` record per position, shape (n,).

    A record that would reach past the end of ``memory`` is read from the last place that fits (or as
    zeros where none does): callers test the length first and ignore what they refused.
    """
    last = memory.size - header.itemsize
    if last < 0:
        return np.zeros(len(position), header)
    everywhere: npt.NDArray[Any] = np.ndarray(
        (last + 1,), f"V{header.itemsize}", memory.data, strides=(1,)
    )
    return everywhere[np.minimum(position, last)].view(header)


def fits(position: Column, end: Column, header: np.dtype[Any]) -> Flags:
    """Tell which packets hold a whole ``header`` between ``position`` and ``end``."""
    return position + header.itemsize <= end


def sum_words(memory: Octets, start: Column, length: Column) -> npt.NDArray[np.uint32]:
    """Sum each slice as big-endian 16-bit words with end-around carry (RFC 1071), shape (n,).

    An odd last octet counts as the high half of a word. The result is folded to 16 bits but not
    complemented, so sums of neighbouring pieces add up (:func:`fold`).
    """
    total: npt.NDArray[Any] = np.zeros(len(start), np.uint64)
    words = length // 2
    for parity in (0, 1):  # a view of words exists for even offsets and one for odd offsets
        chosen = np.flatnonzero((start % 2 == parity) & (words > 0))
        if chosen.size:
            view = memory[parity : parity + (memory.size - parity) // 2 * 2].view(np.uint16)
            total[chosen] = _sum_runs(view, (start[chosen] - parity) // 2, words[chosen])
    total = fold(total)
    if sys.byteorder == "little":  # the sum is independent of byte order (RFC 1071 §2 (B))
        total = total.astype(np.uint16).byteswap().astype(np.uint64)
    odd = np.flatnonzero(length % 2)
    if odd.size:
        total[odd] += memory[start[odd] + length[odd] - 1].astype(np.uint64) << np.uint64(8)
    return fold(total)


def _sum_runs(
    words: npt.NDArray[np.uint16], first: Column, count: Column
) -> npt.NDArray[np.uint64]:
    """Sum ``words[first:first + count]`` for each run; every count > 0."""
    # reduceat converts the whole of its array before it sums, and its last run goes on to the end
    lowest = int(first.min())
    words = words[lowest : int((first + count).max())]
    first = first - lowest
    bounds = np.empty(2 * len(first), np.int64)
    bounds[0::2] = first
    bounds[1::2] = np.minimum(first + count, len(words) - 1)  # reduceat's bounds are indices
    sums: npt.NDArray[np.uint64] = np.add.reduceat(words, bounds, dtype=np.uint64)[0::2]
    cut = (first + count == len(words)) & (count > 1)
    sums[cut] += np.uint64(words[-1])
    return sums


def fold(total: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Fold sums to 16 bits with end-around carry."""
    total = total.astype(np.uint64)
    for _ in range(4):
        total = (total & np.uint64(0xFFFF)) + (total >> np.uint64(16))
    return total.astype(np.uint32)


def checksum(total: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Return the Internet checksum field for a sum: its one's complement."""
    return (~fold(total) & np.uint32(0xFFFF)).astype(np.uint16)


def ragged(start: Column, length: Column) -> Column:
    """Return the offsets of all octets of all slices, one slice after another."""
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()))
