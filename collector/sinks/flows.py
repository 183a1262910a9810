"""Read the flows of delivered frames: by which one of several far ends is chosen."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column, Octets
from tunnelbridge.clone.fragments import FragmentTable
from tunnelbridge.wire.flow import Flows, read_flows
from tunnelbridge.wire.octets import load

PREFIX: Final = 256
"""Octets behind a head that are looked at: MAC, IP and extension headers end long before."""


class FlowReader:
    """Reads what frames are for; both directions of a flow have one hash.

    Later fragments have the hash of their first one.
    """

    def __init__(self) -> None:
        self._fragments = FragmentTable()

    def read(self, frames: Batch) -> Flows:
        """Return the flows of frames of at least 14 octets; columns of shape (m,).

        Offsets count from ``start``, whatever memory that refers to.
        """
        memory, start, end = _in_one_piece(frames)
        flows = read_flows(memory, start, end)
        self._fragments.follow(memory, flows)
        return flows


def _in_one_piece(frames: Batch) -> tuple[Octets, Column, Column]:
    """Return memory in which each frame, or its first octets, lies without a gap: start and end.

    Frames of which some have heads are copied, as far as headers reach.
    """
    head_start, head_length = frames.head_start, frames.head_length
    if head_start is None or head_length is None or not head_length.any():
        return frames.memory, frames.start, frames.start + frames.length
    room = int(head_length.max())
    before = room - head_length
    in_head = np.maximum((head_start - before)[:, None] + np.arange(room), 0)
    body = np.minimum(frames.length, PREFIX)
    octets = np.hstack(
        (frames.head[in_head], _rows(frames.memory, frames.start, max(int(body.max()), 1)))
    )
    start = np.arange(len(frames)) * octets.shape[1] + before
    return octets.reshape(-1), start, start + head_length + body


def _rows(memory: Octets, start: Column, width: int) -> npt.NDArray[np.uint8]:
    """Return ``width`` octets from each ``start``, shape (m, width); behind the memory anything."""
    if int(start.max()) + width <= memory.size:
        octets: Octets = load(memory, start, np.dtype(f"V{width}")).view(np.uint8)
    else:
        octets = memory[np.minimum(start[:, None] + np.arange(width), memory.size - 1)]
    return octets.reshape(len(start), width)
