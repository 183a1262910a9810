"""The first octets of packets in one piece, wherever head and body part them."""

from __future__ import annotations

import numpy as np

from tunnelbridge.batch import Batch, Column, Octets
from tunnelbridge.restore import heads


def window(batch: Batch, rows: Column, width: int) -> Octets:
    """Copy the first ``width`` octets of each packet in ``rows``: uint8, shape (m, width).

    Octets behind a packet's end may be anything. The cost is that of the few lengths heads have.
    """
    if batch.head_start is None or batch.head_length is None:
        return _slices(batch.memory, batch.start[rows], width)
    octets = np.empty((len(rows), width), np.uint8)
    from_head = np.minimum(batch.head_length[rows], width)
    for size in np.unique(from_head).tolist():
        chosen = np.flatnonzero(from_head == size)
        these = rows[chosen]
        if size:
            octets[chosen, :size] = _slices(batch.head, batch.head_start[these], size)
        if size < width:
            octets[chosen, size:] = _slices(batch.memory, batch.start[these], width - size)
    return octets


def _slices(memory: Octets, start: Column, width: int) -> Octets:
    """Copy ``width`` octets from each ``start``; zeros follow the end of the memory."""
    last = max(memory.size - width, 0)
    late = np.flatnonzero(start > last) if memory.size >= width else np.arange(len(start))
    if not late.size:
        return _records(memory, start, width)
    end = np.concatenate((memory[last:], np.zeros(width, np.uint8)))
    if late.size == len(start):
        return _records(end, start - last, width)
    octets = _records(memory, np.minimum(start, last), width)
    octets[late] = _records(end, start[late] - last, width)
    return octets


def _records(memory: Octets, start: Column, width: int) -> Octets:
    return heads.view(memory, f"V{width}")[start].view(np.uint8).reshape(len(start), width)
