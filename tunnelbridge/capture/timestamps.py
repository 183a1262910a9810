"""Turn pcapng timestamps, counts of an interface's own unit, into nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column

Units = npt.NDArray[np.uint64]

_SECOND: Final = 1_000_000_000
_BINARY: Final = 0x80
_FINEST_POWER_OF_TWO: Final = 34
"""A fraction of 34 bits times 10^9 is the most that 64 bits hold; 2^-34 s are 58 ps."""


@dataclass(slots=True)
class Resolution:
    """An interface's if_tsresol octet (10^-n, or 2^-n with the top bit set) and if_tsoffset."""

    exponent: int = 6
    offset: int = 0
    """Seconds to add."""


def nanoseconds(units: Units, resolution: Resolution) -> Column:
    """Return ``units`` of one interface as nanoseconds since 1970, rounded down.

    A time outside 64 bits of nanoseconds (the years 1678 to 2262) wraps around.
    """
    exponent = resolution.exponent & ~_BINARY
    if resolution.exponent & _BINARY:
        time = _from_power_of_two(units, exponent)
    elif exponent <= 9:
        time = units * np.uint64(10 ** (9 - exponent))
    elif exponent - 9 < 20:
        time = units // np.uint64(10 ** (exponent - 9))
    else:  # the largest count is less than a nanosecond
        time = np.zeros_like(units)
    offset = np.uint64(resolution.offset * _SECOND % 2**64)
    return (time + offset).view(np.int64)


def _from_power_of_two(units: Units, exponent: int) -> Units:
    excess = exponent - _FINEST_POWER_OF_TWO
    if excess >= 64:
        return np.zeros_like(units)
    if excess > 0:
        units, exponent = units >> np.uint64(excess), _FINEST_POWER_OF_TWO
    shift, second = np.uint64(exponent), np.uint64(_SECOND)
    seconds = units >> shift
    fraction = units - (seconds << shift)
    return seconds * second + (fraction * second >> shift)
