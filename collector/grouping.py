"""Group the packets of a batch by who sent them and what they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column

KEY: Final = np.dtype([("high", "=u8"), ("low", "=u8"), ("first", "=i8"), ("second", "=i8")])
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)


def keys(
    source: npt.NDArray[np.uint8], first: npt.NDArray[Any], second: npt.NDArray[Any]
) -> npt.NDArray[np.void]:
    """Return one :data:`KEY` per packet: its source address (n, 16) and two numbers (n,)."""
    found = np.empty(len(source), KEY)
    halves = np.ascontiguousarray(source).view(np.uint64)
    found["high"], found["low"] = halves[:, 0], halves[:, 1]
    found["first"], found["second"] = first, second
    return found


def groups(keys: npt.NDArray[np.void]) -> Iterator[tuple[np.void, slice | Column]]:
    """Yield each distinct key and the positions of its packets, in order of first appearance.

    Where there is but one key that is the whole batch at once.
    """
    if not len(keys):
        return
    if (keys == keys[0]).all():
        yield keys[0], slice(None)
        return
    # Records sort slowly: what is sorted is a number that tells them apart.
    words = keys.view(np.uint64).reshape(len(keys), -1)
    mixed = np.zeros(len(keys), np.uint64)
    for column in words.T:
        mixed = (mixed ^ column) * _ODD
        mixed ^= mixed >> np.uint64(29)
    _, inverse = np.unique(mixed, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    bounds = np.flatnonzero(np.diff(inverse[order])) + 1
    begin, end = np.append(0, bounds), np.append(bounds, len(keys))
    for group in np.argsort(order[begin]).tolist():
        places = order[begin[group] : end[group]]
        yield keys[places[0]], places
