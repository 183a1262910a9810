"""What sinks are given: the frames of one batch, and what is known of each beside its octets.

Columns have the shape (m,), one entry per frame. Everything is shared by all sinks, so none changes
it, and it is valid only until the slab is released: who keeps frames longer retains the slab or
copies them (:meth:`Delivery.copied`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column, Flags, Octets
from tunnelbridge.linux.slab import Slab
from tunnelbridge.wire.layer import Kind
from tunnelbridge.wire.octets import ragged

_CHUNK: Final = 64
"""Octets copied at once: fewer indices, and at most this much memory wasted per frame."""


@dataclass(slots=True)
class Delivery:
    """The mirrored frames of a batch of received datagrams."""

    frames: Batch
    """Ethernet frames with their direction, time, and length before anything was cut."""
    stream: Column
    """The number of each frame's stream, its place in ``StreamTable.ledgers()``."""
    gap: Column
    """Sequence numbers that were missing right before this frame in its stream when it came."""
    truncated: Flags
    """The frame was cut before it reached us; a sink's own snap length does not count."""
    slab: Slab | None = None
    """Holds the octets; None where the memory is not reused."""
    outer: Batch | None = None
    """The received datagrams, allowed or not, good or not; None in a copy."""
    index: Column | None = None
    """Which datagram of ``outer`` each frame was in; None in a copy."""
    first: Kind = Kind.NONE
    """What the datagrams begin with, as the socket hands them over."""
    port: int = 0
    """The UDP port they came to, where the socket has taken their UDP headers off."""

    def __len__(self) -> int:
        return len(self.stream)

    def select(self, index: npt.NDArray[Any]) -> Delivery:
        """Return the frames that ``index`` (positions or truth values) names, in its order."""
        return replace(
            self,
            frames=self.frames.select(index),
            stream=self.stream[index],
            gap=self.gap[index],
            truncated=self.truncated[index],
            index=None if self.index is None else self.index[index],
        )

    def cut(self, limit: int) -> Delivery:
        """Return the frames with at most ``limit`` octets each; their original length stays."""
        return replace(self, frames=self.frames.cut(limit))

    def copied(self) -> Delivery:
        """Return the frames over memory of their own, without the datagrams they came in."""
        frames = self.frames
        memory, start = _copy(frames.memory, frames.start, frames.length)
        copy = replace(frames, memory=memory, start=start)
        return replace(self, frames=copy, slab=None, outer=None, index=None)


def _copy(memory: Octets, start: Column, length: Column) -> tuple[Octets, Column]:
    """Copy slices of ``memory``; return the copy and where each slice starts in it."""
    chunks = -(-length // _CHUNK)
    first = np.cumsum(chunks) - chunks
    last = memory.size - _CHUNK
    if last < 0 or (len(start) and int((start + chunks * _CHUNK).max()) > memory.size):
        return memory[ragged(start, length)], np.cumsum(length) - length
    everywhere: npt.NDArray[Any] = np.ndarray((last + 1,), f"V{_CHUNK}", memory.data, strides=(1,))
    place = np.repeat(start - first * _CHUNK, chunks) + np.arange(int(chunks.sum())) * _CHUNK
    return everywhere[place].view(np.uint8), first * _CHUNK
