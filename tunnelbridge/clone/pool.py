"""Which member of a pool gets each clone.

flow
    Both directions of a flow, its fragments and its tunnelled form go to one member
    (:mod:`tunnelbridge.clone.rendezvous`): shares by weight, and when a member goes away only its own
    flows move, and come back with it.
source-ip
    The same, by source address alone.
round-robin
    Members take turns, ``weight`` turns in a row.
weighted-round-robin
    Members take as many turns, spread out as nginx spreads them.

A turn is a packet's, or a flow's (``per="flow"``): its first packet takes the turn, and the member
keeps the flow, both directions, while it goes on. The turns of members that are down are skipped; a
flow that shows while its member is down takes a new turn and stays where it then is. A weight of 0
drains a member at once: it gets nothing, not even the rest of its flows. ``all`` is no choice and not
here.

Turns go on from batch to batch, whatever the batches' sizes, and so does what flows were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags
from tunnelbridge.clone.flow_table import FlowTable
from tunnelbridge.clone.rendezvous import NOBODY, Rendezvous
from tunnelbridge.wire.flow import Words

LONGEST_NGINX_CYCLE: Final = 1 << 16
"""Beyond it turns are spread by their places in the cycle, which takes no loop."""
_TOP_16_BITS: Final = np.uint64(48)
_AHEAD: Final = 4096

Turns = npt.NDArray[np.int16]
"""Shape (k,): numbers of members."""


@dataclass(slots=True)
class Wanted:
    """What choices are made by; columns of shape (n,)."""

    hash: Words
    """The symmetric flow hash."""
    now: Column
    """When each packet was seen, ns."""
    source_hash: Words | None = None
    """Of the source address; for source-ip."""
    flow_key: Words | None = None
    """:func:`.flow_table.flow_key`; for the round robins per flow."""


class Chooser(Protocol):
    """Chooses among the members of one pool; all are available at first."""

    def choose(self, wanted: Wanted) -> Column:
        """Return a member's number for each packet, shape (n,); -1 when no member can take it."""

    def set_available(self, available: Sequence[bool] | Flags) -> None:
        """Say which members are up, one flag for each."""


def chooser(distribution: str, per: str, keys: Sequence[str], weights: Sequence[int]) -> Chooser:
    """Return what chooses by a ``distribution``.

    Args:
        distribution: flow, source-ip, round-robin or weighted-round-robin.
        per: packet or flow: what takes a turn in the round robins.
        keys: the members' addresses in canonical text, all different.
        weights: 0 and up, one for each.

    """
    if distribution in ("flow", "source-ip"):
        return ByHash(keys, weights, of_source=distribution == "source-ip")
    if distribution not in ("round-robin", "weighted-round-robin"):
        raise ValueError(f"no such distribution: {distribution}")
    in_turn = InTurn(round_robin(weights) if distribution == "round-robin" else smooth(weights))
    return InTurnPerFlow(in_turn, weights) if per == "flow" else in_turn


class ByHash:
    """The winner of the hash's bucket."""

    def __init__(self, keys: Sequence[str], weights: Sequence[int], of_source: bool) -> None:
        self._rendezvous = Rendezvous(keys, weights)
        self._of_source = of_source
        self.set_available(np.ones(len(keys), np.bool_))

    def set_available(self, available: Sequence[bool] | Flags) -> None:
        """Give the buckets of members that are down to the others, and theirs back to those up."""
        self._buckets = self._rendezvous.buckets(np.asarray(available, np.bool_))

    def choose(self, wanted: Wanted) -> Column:
        """Return a member's number for each packet, -1 when no member is available."""
        by = wanted.source_hash if self._of_source else wanted.hash
        assert by is not None, "source-ip chooses by source_hash"
        return self._buckets[(by >> _TOP_16_BITS).astype(np.int64)].astype(np.int64)


class InTurn:
    """The next in a cycle of turns, packet by packet."""

    def __init__(self, cycle: Turns) -> None:
        self._cycle = cycle
        self._next = 0
        """Behind the turn that was taken last, as a place in the whole cycle."""
        self._places = np.arange(len(cycle))
        self._look_ahead(_AHEAD)

    def set_available(self, available: Sequence[bool] | Flags) -> None:
        """Skip the turns of members that are down."""
        self._places = np.flatnonzero(np.asarray(available, np.bool_)[self._cycle])
        self._look_ahead(_AHEAD)

    def choose(self, wanted: Wanted) -> Column:
        """Return a member's number for each packet, -1 when no member is available."""
        return self.take(len(wanted.hash))

    def take(self, count: int) -> Column:
        """Take the next ``count`` turns."""
        size = len(self._places)
        if not size or not count:
            return np.full(count, NOBODY, np.int64)
        if len(self._ahead) < size + count:
            self._look_ahead(count)
        first = int(np.searchsorted(self._places, self._next)) % size
        self._next = int(self._places[(first + count - 1) % size]) + 1
        return self._ahead[first : first + count].astype(np.int64)

    def _look_ahead(self, count: int) -> None:
        """Write down the turns that are left over and over, so that a batch is a slice of them."""
        turns = self._cycle[self._places]
        self._ahead = np.tile(turns, 1 - -count // max(len(turns), 1))


class InTurnPerFlow:
    """The next in a cycle for each new flow; a flow's member stays while it is available."""

    def __init__(self, in_turn: InTurn, weights: Sequence[int]) -> None:
        self._in_turn = in_turn
        self._takes = np.asarray(weights) > 0
        self._available = self._takes
        self._flows = FlowTable()

    def set_available(self, available: Sequence[bool] | Flags) -> None:
        """Let the flows of members that are down take new turns if they show before it is back."""
        self._available = self._takes & np.asarray(available, np.bool_)
        self._in_turn.set_available(available)

    def follow(self, former: InTurnPerFlow, numbers: Sequence[int | None]) -> None:
        """Go on with the flows of a pool that was changed; ``numbers`` are its members' there."""
        self._flows = former._flows
        self._flows.renumber({old: new for new, old in enumerate(numbers) if old is not None})

    def choose(self, wanted: Wanted) -> Column:
        """Return a member's number for each packet, -1 when no member is available."""
        key, now = wanted.flow_key, wanted.now
        assert key is not None, "per flow chooses by flow_key"
        choice = self._flows.look_up(key, now)
        stays = (choice >= 0) & self._available[choice]
        fresh = np.flatnonzero(~stays)
        if not self._available.any():
            choice[fresh] = NOBODY
        elif fresh.size:
            _, first, flow = np.unique(key[fresh], return_index=True, return_inverse=True)
            turn = np.empty(len(first), np.int64)
            turn[np.argsort(first)] = self._in_turn.take(len(first))  # in the order of appearance
            choice[fresh] = turn[flow]
            self._flows.insert(key[fresh], choice[fresh], now[fresh])
        return choice


def round_robin(weights: Sequence[int]) -> Turns:
    """Return a cycle in which each member has ``weight`` turns in a row."""
    return np.repeat(np.arange(len(weights), dtype=np.int16), weights)


def smooth(weights: Sequence[int]) -> Turns:
    """Return a cycle with ``weight`` turns of each member, far from each other.

    nginx's smooth weighted round robin (ngx_http_upstream_round_robin.c): everybody gains its weight,
    the highest takes the turn and pays the total.
    """
    common = gcd(*weights) or 1
    weights = [weight // common for weight in weights]
    total = sum(weights)
    if total > LONGEST_NGINX_CYCLE:
        return _spread(weights)
    current = np.zeros(len(weights), np.int64)
    cycle = np.empty(total, np.int16)
    for turn in range(total):
        current += weights
        best = int(current.argmax())
        current[best] -= total
        cycle[turn] = best
    return cycle


def _spread(weights: Sequence[int]) -> Turns:
    """Return the same number of turns, turn k of a member at (k + 1/2) / weight of the cycle."""
    member = np.repeat(np.arange(len(weights), dtype=np.int16), weights)
    place = np.concatenate([(np.arange(weight) + 0.5) / weight for weight in weights if weight])
    return member[np.argsort(place, kind="stable")]
