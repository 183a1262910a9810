"""Weighted rendezvous hashing: which member a flow belongs to, the same on every machine.

The top 16 bits of a hash name one of 65536 buckets. In each bucket every member draws its own number u
and the one with the highest score -w / ln(u) wins (Thaler and Ravishankar 1998; weights as in
Schindelhauer and Schomaker 2005). A member that goes away leaves its buckets to the others and moves no
bucket of theirs; when it is back it wins exactly those again. Shares are proportional to weights.

Everything is defined down to the bit, so that senders agree without talking to each other:

* the seed of a member is the FNV-1a hash, 64 bits, of its name in UTF-8: its address in canonical text
  (RFC 5952 for IPv6);
* its draw for bucket b is output number b of splitmix64 with that seed, counted from 0;
* u = (draw >> 12 + 1/2) / 2**52, which is never 0 nor 1 and exact in a double;
* the logarithm is calculated here from IEEE 754 sums, products and quotients, which are the same
  everywhere; libraries' logarithms differ in the last bit;
* scores are compared upside down, as -ln(u) / w, the lowest wins, of equal ones the first member's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Flags
from tunnelbridge.wire.flow import Words, mix

BUCKETS: Final = 1 << 16
NOBODY: Final = -1
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
_GOLDEN: Final = 0x9E3779B97F4A7C15
"""What splitmix64 adds to its state for each output."""
_LN2, _SQRT_HALF = 0.6931471805599453, 0.7071067811865476

Numbers = npt.NDArray[np.float64]
Buckets = npt.NDArray[np.int16]
"""Shape (65536,): a member's number for each bucket, NOBODY where none is left."""


class Rendezvous:
    """The scores of all members, calculated once; who is there is asked each time."""

    def __init__(self, keys: Sequence[str], weights: Sequence[int]) -> None:
        self._costs = [
            -logarithm(draws(key)) / weight if weight else None
            for key, weight in zip(keys, weights, strict=True)
        ]

    def buckets(self, available: Flags) -> Buckets:
        """Return who takes each bucket among the members that are available and have a weight."""
        winner = np.full(BUCKETS, NOBODY, np.int16)
        lowest = np.full(BUCKETS, np.inf)
        for number, cost in enumerate(self._costs):
            if cost is not None and available[number]:
                better = cost < lowest
                winner[better] = number
                lowest[better] = cost[better]
        return winner


def draws(key: str) -> Numbers:
    """Return a member's numbers u, 0 < u < 1, for all buckets."""
    state = np.arange(1, BUCKETS + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(seed(key))
    drawn: Words = mix(state)
    return ((drawn >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52


def seed(key: str) -> int:
    """Return FNV-1a, 64 bits, of a member's name."""
    value = _FNV_OFFSET
    for octet in key.encode():
        value = (value ^ octet) * _FNV_PRIME & 0xFFFF_FFFF_FFFF_FFFF
    return value


def logarithm(number: Numbers) -> Numbers:
    """Return natural logarithms, the same bits on every machine.

    ln(m * 2**e) = e ln 2 + 2 artanh t with t = (m - 1) / (m + 1) and sqrt(1/2) <= m < sqrt(2), from
    t + t**3 / 3 + t**5 / 5 ... up to t**21 / 21; what is left out is below half a unit of a double.
    """
    fraction, exponent = np.frexp(number)
    small = fraction < _SQRT_HALF
    fraction = np.where(small, fraction * 2, fraction)
    t = (fraction - 1.0) / (fraction + 1.0)
    square = t * t
    series = np.full(len(number), 1 / 21)
    for odd in range(19, 0, -2):
        series = series * square + 1 / odd
    return (exponent - small) * _LN2 + series * t * 2.0
