"""``--reorder``: merge what several streams brought into one output in the order of time.

Frames wait, copied, until they are as old as the window; then they go on sorted by timestamp, those
of one time in the order in which they came. A frame that comes when a later one has already gone on
is late: it is counted and goes on at once. A timestamp that lies ahead of the clock counts as now,
so that a sender's wrong clock cannot hold back, or overtake, everybody else's frames.

The buffer is bounded in octets: when it is full the oldest frames go on before their time is up.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from collector.contiguous import join, snapshot
from collector.delivery import Delivery
from tunnelbridge.batch import Column

BUFFER: Final = 64_000_000
"""Octets of frames that wait, at most."""
_LONG_AGO: Final = -(1 << 62)


class _Waiting(NamedTuple):
    """Copied frames and when each counts as sent, shape (m,)."""

    delivery: Delivery
    time: Column

    def select(self, index: npt.NDArray[np.bool_]) -> _Waiting:
        return _Waiting(self.delivery.select(index), self.time[index])


class Reorderer:
    """Holds frames for ``window`` nanoseconds; what it returns goes to the sinks."""

    def __init__(self, window: int, most_octets: int = BUFFER) -> None:
        self.window = window
        self.late = 0
        """Frames that came after a later one had gone on."""
        self.hurried = 0
        """Frames that went on before their window was over, for want of room."""
        self._most_octets = most_octets
        self._waiting: list[_Waiting] = []
        self._octets = 0
        self._gone = _LONG_AGO

    @property
    def held(self) -> int:
        """Frames that wait."""
        return sum(len(each.time) for each in self._waiting)

    def put(self, delivery: Delivery, now: int) -> Delivery | None:
        """Take frames at ``now`` (nanoseconds since the epoch); return what is due, if anything is."""
        if len(delivery):
            copy = snapshot(delivery)
            self._waiting.append(_Waiting(copy, np.minimum(delivery.frames.timestamp, now)))
            self._octets += int(copy.frames.length.sum())
        due = self.due(now)
        if self._octets <= self._most_octets:
            return due
        early = self._release(self._border())
        self.hurried += 0 if early is None else len(early)
        return early if due is None else due if early is None else join([due, early])

    def due(self, now: int) -> Delivery | None:
        """Return the frames whose window is over at ``now``, in the order of time."""
        return self._release(now - self.window)

    def flush(self) -> Delivery | None:
        """Return all that waits."""
        return self._release(np.iinfo(np.int64).max)

    def _border(self) -> int:
        """Return the time up to which frames must go for half the buffer to be free."""
        time = np.concatenate([each.time for each in self._waiting])
        length = np.concatenate([each.delivery.frames.length for each in self._waiting])
        order = np.argsort(time, kind="stable")
        kept = self._octets - np.cumsum(length[order])
        return int(time[order[np.argmax(kept <= self._most_octets // 2)]])

    def _release(self, border: int) -> Delivery | None:
        """Return the frames up to ``border``, sorted."""
        going, staying = [], []
        for each in self._waiting:
            is_due = each.time <= border
            if is_due.all():
                going.append(each)
            elif is_due.any():
                going.append(each.select(is_due))
                staying.append(each.select(~is_due))
            else:
                staying.append(each)
        if not going:
            return None
        self._waiting = staying
        time = np.concatenate([each.time for each in going])
        self.late += int(np.count_nonzero(time < self._gone))
        self._gone = max(self._gone, int(time.max()))
        # of what goes only its own octets, not those of frames that stay
        joined = join([snapshot(each.delivery) for each in going])
        self._octets -= int(joined.frames.length.sum())
        return joined.select(np.argsort(time, kind="stable"))
