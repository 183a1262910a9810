"""Later fragments follow their first one: they get its flow hash and its ports.

Only the first fragment of a packet has ports (RFC 791 §3.2, RFC 8200 §4.5), so by themselves the others
would go to another pool member, and past filters with ports. The table is direct-mapped and bounded: a
newer first fragment pushes out an older one of the same slot. A first fragment counts wherever it is in
the batch; one that comes in a later batch than the rest is too late, and they stay orphans.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire import ethernet, ipv4
from tunnelbridge.wire.flow import ADDRESSES6, Flows, Words, fold6, mix
from tunnelbridge.wire.octets import load

SLOTS: Final = 1 << 14
_ENTRY: Final = np.dtype(
    [("key", "u8"), ("hash", "u8"), ("inner_source", "u8"), ("ports", "i8")], align=True
)


class FragmentTable:
    """Remembers first fragments; ``followed`` and ``orphaned`` count later ones."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.followed = 0
        self.orphaned = 0
        self._entries = np.zeros(slots, _ENTRY)

    def follow(self, memory: Octets, flows: Flows) -> None:
        """Put hash, inner source and ports of their first into later fragments' rows, in place."""
        if flows.identification is None or flows.first_fragment is None:
            return
        rows = np.flatnonzero(flows.fragment)
        is_first = flows.first_fragment[rows]
        key = _keys(memory, flows, rows)
        slot = (key % np.uint64(len(self._entries))).astype(np.int64)
        self._remember(flows, rows[is_first], key[is_first], slot[is_first])
        later = np.flatnonzero(~is_first)
        known = later[self._entries["key"][slot[later]] == key[later]]
        self.followed += len(known)
        self.orphaned += len(later) - len(known)
        self._recall(flows, rows[known], self._entries[slot[known]])

    def _remember(self, flows: Flows, rows: Column, key: Words, slot: Column) -> None:
        entry = np.zeros(len(rows), _ENTRY)
        entry["key"], entry["hash"], entry["ports"] = key, flows.hash[rows], flows.ports[rows]
        if flows.inner_source is not None:
            entry["inner_source"] = flows.inner_source[rows]
        self._entries[slot] = entry

    def _recall(self, flows: Flows, rows: Column, entry: np.ndarray[Any, np.dtype[Any]]) -> None:
        flows.hash[rows], flows.ports[rows] = entry["hash"], entry["ports"]
        if entry["inner_source"].any():
            if flows.inner_source is None:
                flows.inner_source = np.zeros(len(flows.hash), np.uint64)
            flows.inner_source[rows] = entry["inner_source"]


def _keys(memory: Octets, flows: Flows, rows: Column) -> Words:
    """Return what the fragments of one packet have in common, hashed; never 0.

    Addresses and identification, and in IPv4 the protocol.
    """
    at, is6 = flows.payload[rows], flows.ethertype[rows] == ethernet.IPV6
    header = load(memory, at, ipv4.HEADER)
    source = header["source"].astype(np.uint64)
    destination = header["destination"].astype(np.uint64)
    protocol = np.where(is6, 256, flows.protocol[rows])
    if is6.any():
        addresses = load(memory, at[is6] + 8, ADDRESSES6)
        source[is6], destination[is6] = fold6(addresses["source"]), fold6(addresses["destination"])
    assert flows.identification is not None
    number = (flows.identification[rows] << 9 | protocol).astype(np.uint64)
    key = mix(mix(mix(source) + destination) + number)
    return np.where(key == 0, np.uint64(1), key)
