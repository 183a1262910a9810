"""Copies of header octets: read fields anywhere, copy many headers at once, attach them to packets.

Fields lie at any offset, so memory is looked at through a view with stride 1 in which element *i* is
the field that begins at octet *i*.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import NO_OCTETS, Batch, Column, Octets, zeros


def view(memory: Octets, field: str) -> npt.NDArray[Any]:
    """Return ``memory`` as fields of dtype ``field`` (">u2"), one beginning at every octet.

    The view shares the memory: writing ``view(head, ">u2")[position] = value`` writes fields.
    """
    dtype: np.dtype[Any] = np.dtype(field)
    return np.ndarray((max(memory.size - dtype.itemsize + 1, 0),), dtype, memory.data, strides=(1,))


def read(memory: Octets, position: Column, field: str) -> Column:
    """Return the fields at ``position``, shape (n,).

    A field that would reach past the end is read from the last place that fits: callers compare
    with the packet's length and ignore what they refused.
    """
    fields = view(memory, field)
    if not len(fields):
        return zeros(len(position))
    return fields[np.minimum(position, len(fields) - 1)].astype(np.int64)


def copy(memory: Octets, start: Column, length: Column, room: int = 0) -> tuple[Octets, Column]:
    """Copy slices of ``memory``, each with ``room`` unset octets in front.

    Returns the octets (one array) and where in it each slice's room begins, shape (n,). Slices of
    the same length are copied in one go, so the cost is that of the few lengths headers have.
    """
    order = np.argsort(length, kind="stable")
    ordered = length[order]
    size = ordered + room
    place = np.cumsum(size) - size
    octets = np.empty(int(size.sum()), np.uint8)
    bounds = np.flatnonzero(np.diff(ordered, prepend=-1, append=-1))
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        wide = int(ordered[first])
        if wide:
            rows = octets[int(place[first]) :][: (last - first) * (room + wide)]
            records = view(memory, f"V{wide}")[start[order[first:last]]]
            rows.reshape(last - first, room + wide)[:, room:] = records.view(np.uint8).reshape(
                last - first, wide
            )
    at = np.empty_like(place)
    at[order] = place
    return octets, at


def attach(
    batch: Batch, rows: Column, octets: Octets, start: Column, length: Column, skip: Column
) -> Batch:
    """Give the packets at ``rows`` new heads instead of the ones they have.

    ``octets``, ``start`` and ``length`` are the heads; ``skip`` is how many octets of the body they
    stand for, which leave the body. Other packets keep what they have; nothing given is changed.
    """
    count = len(batch)
    before = batch.head if batch.head_start is not None else NO_OCTETS
    head_start = zeros(count) if batch.head_start is None else batch.head_start.copy()
    head_length = zeros(count) if batch.head_length is None else batch.head_length.copy()
    body_start, body_length = batch.start.copy(), batch.length.copy()
    head_start[rows] = start + before.size
    head_length[rows] = length
    body_start[rows] += skip
    body_length[rows] -= skip
    return replace(
        batch,
        head=np.concatenate((before, octets)) if before.size else octets,
        head_start=head_start,
        head_length=head_length,
        start=body_start,
        length=body_length,
    )
