"""``--dedup``: of a packet that was mirrored several times, pass on the first copy only.

Two taps on one path, or the ingress and the egress copy of one switch, show an analyser the same
packet twice within microseconds to milliseconds; what a router or switch changed between them is
tolerated (:mod:`collector.digest`). A packet is a duplicate if one of the same digest was passed on at
most the window ago, earlier or later by its timestamp.

A TCP retransmission is no duplicate. In IPv4 its IP identification tells it apart. Where there is
none (IPv6, and IPv4 with identification 0, RFC 6864 §4.1) a segment is called a duplicate only if it
came another way than the first: another stream, direction, TTL, VLAN tag or MAC address. So two
copies of an IPv6 TCP segment that are equal to the last octet, in one stream, are both passed on.
Not told apart: senders that retransmit under the same identification (RFC 791 allowed it), and
datagrams other than TCP that are sent twice on purpose within the window. A packet that one tap cut
and another did not is not recognised.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from collector.contiguous import contiguous
from collector.digest import Digester, Digests
from tunnelbridge.batch import Batch, Column, Flags
from tunnelbridge.wire.flow import Flows, Words

ENTRIES: Final = 1 << 18
WAYS: Final = 4
_LONG_AGO: Final = -(1 << 62)


class Deduplicator:
    """Remembers digests of the packets passed on within ``window`` nanoseconds, at most ``entries``.

    ``key`` is a secret number: with it a sender could hide packets from the analysers.
    """

    def __init__(self, window: int, key: int, entries: int = ENTRIES) -> None:
        self.window = window
        self.duplicates = 0
        self._digester = Digester(key)
        self._table = _Table(window, entries)

    @property
    def forgotten(self) -> int:
        """Packets that had to be forgotten before their window was over: the table is too small."""
        return self._table.forgotten

    def find(self, frames: Batch, stream: Column, flows: Flows | None = None) -> Flags:
        """Tell which frames are duplicates, shape (n,), and count them.

        ``stream`` is each frame's stream number; ``flows`` what was already read of ``frames``,
        which then have no heads.
        """
        digests = self._digester.read(contiguous(frames), stream, flows)
        found = self._compare(digests, frames.timestamp)
        self.duplicates += int(np.count_nonzero(found))
        return found

    def _compare(self, digests: Digests, time: Column) -> Flags:
        """Settle the frames of each digest in order, all digests at once.

        A frame within the window of the anchor, the last one that was not, is settled by it; the
        first that is not becomes the next round's anchor. Usually there is one round.
        """
        duplicate = np.zeros(len(time), np.bool_)
        if not len(time):
            return duplicate
        rows = np.argsort(digests.value, kind="stable")
        ordered = digests.value[rows]
        is_first = np.append(True, ordered[1:] != ordered[:-1])
        values, group = ordered[is_first], np.cumsum(is_first) - 1
        anchor_time, anchor_path = self._table.find(values)
        is_new = np.zeros(len(values), np.bool_)
        while rows.size:
            near = np.abs(time[rows] - anchor_time[group]) <= self.window
            far = np.flatnonzero(~near)
            far = far[np.append(True, group[far[1:]] != group[far[:-1]])[: len(far)]]
            border = np.full(len(values), len(rows))
            border[group[far]] = far
            settled = np.flatnonzero(np.arange(len(rows)) < border[group])
            index = rows[settled]
            another_way = digests.path[index] != anchor_path[group[settled]]
            duplicate[index] = ~digests.is_vague[index] | another_way
            anchor_time[group[far]] = time[rows[far]]
            anchor_path[group[far]] = digests.path[rows[far]]
            is_new[group[far]] = True
            left = np.arange(len(rows)) > border[group]
            rows, group = rows[left], group[left]
        self._table.store(values[is_new], anchor_time[is_new], anchor_path[is_new])
        return duplicate


class _Table:
    """Digests with time and path: buckets of four, in which the oldest gives way."""

    def __init__(self, window: int, entries: int) -> None:
        buckets = 1 << max((entries // WAYS - 1).bit_length(), 0)
        self._mask = np.uint64(buckets - 1)
        self._window = window
        self._value: npt.NDArray[np.uint64] = np.zeros((buckets, WAYS), np.uint64)
        self._time: npt.NDArray[np.int64] = np.full((buckets, WAYS), _LONG_AGO)
        self._path: npt.NDArray[np.uint64] = np.zeros((buckets, WAYS), np.uint64)
        self.forgotten = 0

    def find(self, values: Words) -> tuple[Column, Words]:
        """Return time and path of each value; the time is long ago where it is not known."""
        bucket = (values & self._mask).astype(np.int64)
        hit = self._value[bucket] == values[:, None]
        way = hit.argmax(axis=1)
        time = np.where(hit.any(axis=1), self._time[bucket, way], _LONG_AGO)
        return time, self._path[bucket, way]

    def store(self, values: Words, time: Column, path: Words) -> None:
        """Remember distinct values; of those that want the same place, each finds another."""
        for _ in range(WAYS):
            if not len(values):
                return
            bucket = (values & self._mask).astype(np.int64)
            hit = self._value[bucket] == values[:, None]
            way = np.where(hit.any(axis=1), hit.argmax(axis=1), self._time[bucket].argmin(axis=1))
            former = np.where(hit.any(axis=1), _LONG_AGO, self._time[bucket, way])
            self._value[bucket, way] = values
            self._time[bucket, way] = time
            self._path[bucket, way] = path
            placed = self._value[bucket, way] == values
            self.forgotten += int(np.count_nonzero((time - former <= self._window) & placed))
            values, time, path = values[~placed], time[~placed], path[~placed]
        self.forgotten += len(values)
