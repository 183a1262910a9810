"""What was decided for a flow, for as long as the flow goes on: a bounded map from key to number.

Set-associative, four ways: a key has four places, and the least recently seen flow makes room when all
are taken. Every operation takes columns and costs the same however full the table is; both directions
of a flow have the same key (:func:`flow_key`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column
from tunnelbridge.wire.flow import Flows, Words, mix

SLOTS: Final = 1 << 18
IDLE_NS: Final = 120 * 10**9
"""A flow that was not seen for so long is forgotten; the kernel's conntrack gives UDP streams as much
(nf_conntrack_udp_timeout_stream)."""
WAYS: Final = 4
_NOTHING: Final = -1
_LONG_AGO: Final = np.iinfo(np.int64).min


def flow_key(flows: Flows, salt: int = 0) -> Words:
    """Return a key per frame, shape (n,): of addresses, ports and protocol, in either direction."""
    protocols = mix(np.arange(257, dtype=np.uint64) + np.uint64(salt << 9))  # -1 comes first
    return mix(flows.hash ^ protocols[flows.protocol + 1])


class FlowTable:
    """A bounded map from flow keys to numbers from 0 up; ``evicted`` counts live flows pushed out.

    Times are nanoseconds and may jump: a flow counts as idle by the time of the packet that asks.
    """

    def __init__(self, slots: int = SLOTS, idle_ns: int = IDLE_NS) -> None:
        self.evicted = 0
        self._idle = idle_ns
        self._sets = max(slots // WAYS, 1)
        self._keys = np.zeros(self._sets * WAYS, np.uint64)
        self._values = np.full(self._sets * WAYS, _NOTHING, np.int32)
        self._seen = np.zeros(self._sets * WAYS, np.int64)

    def look_up(self, key: Words, now: Column) -> Column:
        """Return each key's number, -1 if it is unknown or idle; it counts as seen ``now``."""
        slot = self._find(key, now)
        known = np.flatnonzero(slot >= 0)
        value = np.full(len(key), _NOTHING, np.int64)
        value[known] = self._values[slot[known]]
        self._seen[slot[known]] = now[known]
        return value

    def insert(self, key: Words, value: Column, now: Column) -> None:
        """Put numbers in, over those that known keys had; of equal keys in one call the first counts.

        No more than four new keys fit into one set at a time; those beyond count as evicted.
        """
        row = np.sort(np.unique(key, return_index=True)[1])
        slot = self._find(key[row], now[row])
        new = np.flatnonzero(slot < 0)
        self._seen[slot[slot >= 0]] = now[row[slot >= 0]]
        slot[new] = self._make_room(key[row[new]], now[row[new]])
        row, slot = row[slot >= 0], slot[slot >= 0]
        self._keys[slot], self._values[slot], self._seen[slot] = key[row], value[row], now[row]

    def renumber(self, numbers: Mapping[int, int]) -> None:
        """Give all flows of a number another one, and forget those of numbers that have none."""
        before = self._values
        self._values = np.full(len(before), _NOTHING, np.int32)
        for old, new in numbers.items():
            self._values[before == old] = new

    def forget(self, values: npt.ArrayLike) -> None:
        """Take all flows out that have one of these numbers."""
        self._values[np.isin(self._values, values)] = _NOTHING

    def _find(self, key: Words, now: Column) -> Column:
        """Return the slot of each key that is there and not idle, -1 for the rest."""
        first = self._first_slot(key)
        found = np.full(len(key), _NOTHING, np.int64)
        for way in range(WAYS):
            here = np.flatnonzero(self._keys[first + way] == key)
            here = here[self._is_live(first[here] + way, now[here])]
            found[here] = first[here] + way
        return found

    def _make_room(self, key: Words, now: Column) -> Column:
        """Return a slot of its own for each of k different new keys, -1 for those without."""
        first = self._first_slot(key)
        turn = _turn_in_group(first)
        taken = np.flatnonzero(turn < WAYS)
        self.evicted += len(key) - len(taken)
        ways = first[taken, None] + np.arange(WAYS)
        live = self._is_live(ways, now[taken, None])
        order = np.argsort(np.where(live, self._seen[ways], _LONG_AGO), axis=1, kind="stable")
        way = order[np.arange(len(taken)), turn[taken]]
        self.evicted += int(live[np.arange(len(taken)), way].sum())
        slot = np.full(len(key), _NOTHING, np.int64)
        slot[taken] = first[taken] + way
        return slot

    def _first_slot(self, key: Words) -> Column:
        return (key % np.uint64(self._sets)).astype(np.int64) * WAYS

    def _is_live(self, slot: Column, now: Column) -> npt.NDArray[np.bool_]:
        live: npt.NDArray[np.bool_] = self._values[slot] != _NOTHING
        return live & (now - self._seen[slot] <= self._idle)


def _turn_in_group(group: Column) -> Column:
    """Return how many rows before each have the same group number."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    position = np.arange(len(group))
    begins = np.ones(len(group), np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    turn = np.empty(len(group), np.int64)
    turn[order] = position - np.maximum.accumulate(np.where(begins, position, 0))
    return turn
