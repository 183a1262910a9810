"""The breaker: the same packet coming back in a tunnel, twice, is a loop whatever it looks like.

Every cloned packet is remembered by a digest of its IP packet (lengths, addresses, identification,
first transport octets: what no tunnel changes) together with its generation. A frame that carries a
remembered packet inside a tunnel is of the next generation: an echo. Hosts that mirror both the
inside and the outside of their own overlay see first echoes all day; a second echo, a packet inside
a tunnel inside a tunnel of which both shorter forms were cloned, is refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.wire.flow import Flows, read_flows
from tunnelbridge.wire.octets import load

SLOTS: Final = 1 << 16
_WORD: Final = np.dtype([("value", "=u8")])
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)

Digests = npt.NDArray[np.uint64]


class Breaker:
    """A direct-mapped table of digests; bounded, newer packets push out older ones."""

    def __init__(self) -> None:
        self.armed = False
        """Set with the first tunnelled frame; until then nothing is remembered."""
        self._digests = np.zeros(SLOTS, np.uint64)
        self._generations = np.zeros(SLOTS, np.uint8)
        self._echoes: dict[int, int] = {}

    def is_second_echo(
        self, memory: Octets, inner: Column, inner_end: Column, frame: Column
    ) -> Flags:
        """Tell which frames carry a packet that was itself an echo; shape (k,).

        ``inner`` (k,) is where the tunnelled frame starts, -1 without one; ``frame`` (k,) numbers the
        frames in their batch, for :meth:`remember`.
        """
        second = np.zeros(len(inner), np.bool_)
        self._echoes = {}
        inside = np.flatnonzero((inner >= 0) & (inner_end - inner >= 34))
        if inside.size:
            start, end = inner[inside], inner_end[inside]
            digest = _digest(memory, read_flows(memory, start, end))
            slot = (digest >> np.uint64(48)).astype(np.int64)
            known = self._digests[slot] == digest
            generation = np.where(known, self._generations[slot] + 1, 0)
            second[inside] = generation >= 2
            self._echoes = dict(zip(frame[inside].tolist(), generation.tolist(), strict=True))
        return second

    def remember(self, memory: Octets, flows: Flows, cloned: Flags) -> None:
        """Remember the frames of the batch that will be cloned."""
        chosen = np.flatnonzero(cloned & (flows.transport > flows.payload))
        if not chosen.size:
            return
        digest = _digest(memory, flows)[chosen]
        generation = np.zeros(len(cloned), np.uint8)
        for frame, number in self._echoes.items():
            generation[frame] = number
        slot = (digest >> np.uint64(48)).astype(np.int64)
        self._digests[slot] = digest
        self._generations[slot] = generation[chosen]


def _digest(memory: Octets, flows: Flows) -> Digests:
    """Digest each frame's IP packet: its length, first 24 octets and first 8 of its payload."""
    digest = (flows.end - flows.payload).astype(np.uint64)
    for position in (flows.payload, flows.payload + 8, flows.payload + 16, flows.transport):
        digest = (digest ^ load(memory, position, _WORD)["value"]) * _ODD
        digest ^= digest >> np.uint64(29)
    return digest
