"""Records of a capture file as gather lists: which octets, in which order, without copying them.

A format puts rows of its own (headers, padding, options) around packets that stay where they are.
Who writes them turns pieces into iovecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column, Octets


class Piece(NamedTuple):
    """One slice of ``memory`` for each of n records; columns of shape (n,)."""

    memory: Octets
    start: Column
    length: Column


@dataclass(slots=True)
class Records:
    """n records, each made of one slice of every piece, in the order of the pieces."""

    pieces: Sequence[Piece]
    size: Column
    """Octets of each record, shape (n,)."""

    def __len__(self) -> int:
        return len(self.size)


def rows(table: npt.NDArray[Any], start: Column | int = 0) -> Piece:
    """Return the rows of a structured array as a piece, each from its octet ``start`` on."""
    width = table.dtype.itemsize
    first = np.arange(len(table)) * width + start
    length = np.full(len(table), width, np.int64) - start
    return Piece(table.view(np.uint8), first, length)


def packets(batch: Batch) -> list[Piece]:
    """Return the packets themselves: their heads, where there are any, and their bodies."""
    body = Piece(batch.memory, batch.start, batch.length)
    if batch.head_start is None or batch.head_length is None:
        return [body]
    return [Piece(batch.head, batch.head_start, batch.head_length), body]
