"""Frames in one piece each, and batches in one, for stages that read or keep whole frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from collector.delivery import Delivery
from tunnelbridge.batch import NO_OCTETS, Batch, Column, Octets
from tunnelbridge.wire.octets import load, ragged

FEW: Final = 16
"""Frames that are copied sooner one by one than as columns."""
_CHUNK: Final = 64
"""Octets copied at once: fewer indices, and at most this much memory wasted per frame."""


def contiguous(frames: Batch) -> Batch:
    """Return the frames without heads: the batch itself where there are none, else a copy."""
    if frames.head_start is None or frames.head_length is None:
        return frames
    if not frames.head_length.any():
        return replace(frames, head=NO_OCTETS, head_start=None, head_length=None)
    room = -(-int(frames.head_length.max()) // _CHUNK)
    memory, body = _copy(frames.memory, frames.start, frames.length, room)
    start = body - frames.head_length
    for size in np.unique(frames.head_length).tolist():
        rows = np.flatnonzero(frames.head_length == size)
        if size:
            header = np.dtype(f"V{size}")
            _everywhere(memory, size)[start[rows]] = load(
                frames.head, frames.head_start[rows], header
            )
    return replace(
        frames,
        memory=memory,
        start=start,
        length=frames.head_length + frames.length,
        head=NO_OCTETS,
        head_start=None,
        head_length=None,
    )


def snapshot(delivery: Delivery, rows: slice | Column = slice(None)) -> Delivery:
    """Return the frames ``rows``, without heads, over memory of their own.

    As cheap for few frames as can be. Whole columns are shared: nobody changes them.
    """
    frames = contiguous(delivery.frames)
    length = frames.length[rows]
    memory, start = _copy(frames.memory, frames.start[rows], length, 0)
    kept = (frames.wire_length[rows], frames.timestamp[rows], frames.direction[rows])
    return Delivery(
        Batch(memory, start, length, *kept),
        delivery.stream[rows],
        delivery.gap[rows],
        delivery.truncated[rows],
    )


def join(parts: Sequence[Delivery]) -> Delivery:
    """Return the frames of several snapshots as one delivery; there is at least one."""
    if len(parts) == 1:
        return parts[0]
    size = np.array([part.frames.memory.size for part in parts], np.int64)
    shift: Column = np.repeat(np.cumsum(size) - size, [len(part) for part in parts])
    frames = [part.frames for part in parts]
    return Delivery(
        Batch(
            memory=np.concatenate([each.memory for each in frames]),
            start=np.concatenate([each.start for each in frames]) + shift,
            length=np.concatenate([each.length for each in frames]),
            wire_length=np.concatenate([each.wire_length for each in frames]),
            timestamp=np.concatenate([each.timestamp for each in frames]),
            direction=np.concatenate([each.direction for each in frames]),
        ),
        stream=np.concatenate([part.stream for part in parts]),
        gap=np.concatenate([part.gap for part in parts]),
        truncated=np.concatenate([part.truncated for part in parts]),
    )


def _copy(memory: Octets, start: Column, length: Column, room: int) -> tuple[Octets, Column]:
    """Copy slices with ``room`` chunks of anything in front; return the copy and their places."""
    if not room and 0 < len(start) <= FEW:
        pairs = zip(start.tolist(), length.tolist(), strict=True)
        pieces = [memory[first : first + size] for first, size in pairs]
        return np.concatenate(pieces), np.cumsum(length) - length
    chunks = -(-length // _CHUNK) + room
    first = np.cumsum(chunks) - chunks
    place = (first + room) * _CHUNK
    if memory.size < _CHUNK or int((start - place + (first + chunks) * _CHUNK).max()) > memory.size:
        copy = np.zeros(int(chunks.sum()) * _CHUNK, np.uint8)
        copy[ragged(place, length)] = memory[ragged(start, length)]
        return copy, place
    source = np.repeat(start - place, chunks) + np.arange(int(chunks.sum())) * _CHUNK
    records = _everywhere(memory, _CHUNK)[np.maximum(source, 0)]
    return records.view(np.uint8), place


def _everywhere(memory: Octets, size: int) -> npt.NDArray[Any]:
    """Return ``memory`` as records of ``size`` octets, one beginning at every octet."""
    return np.ndarray((memory.size - size + 1,), f"V{size}", memory.data, strides=(1,))
