"""Read the flows of delivered frames: by which one of several far ends is chosen."""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Batch, Column, Octets
from tunnelbridge.clone.fragments import FragmentTable
from tunnelbridge.wire.flow import Flows, read_flows

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
    if frames.head_start is None or frames.head_length is None or not len(frames):
        return frames.memory, frames.start, frames.start + frames.length
    room = int(frames.head_length.max())
    before = room - frames.head_length
    body = np.minimum(frames.length, PREFIX)
    octets = np.zeros((len(frames), room + int(body.max())), np.uint8)
    if room:
        in_head = np.maximum(frames.head_start[:, None] + np.arange(room) - before[:, None], 0)
        octets[:, :room] = frames.head[in_head]
    in_body = frames.start[:, None] + np.arange(octets.shape[1] - room)
    octets[:, room:] = frames.memory[np.minimum(in_body, frames.memory.size - 1)]
    start = np.arange(len(frames)) * octets.shape[1] + before
    return octets.reshape(-1), start, start + frames.head_length + body
