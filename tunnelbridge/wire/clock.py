"""Tell time by a clock that wraps: a source's own stamps, told apart by when they arrived.

A header's time stamp is a count that starts again after its period: 4.97 days for 32 bits of 100 µs,
429 s for 100 ns, 4.29 s for nanoseconds. Of all times it may mean, the one nearest to the arrival is
taken. That is right if the source's clock is within half a period of ours.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column
from tunnelbridge.wire.layer import UNKNOWN

PERIOD_SECONDS: Final = (1 << 32) * 1_000_000_000
"""Period of a clock that tells 32 bits of seconds and what of a second has passed."""


def unwrap(clock: Column, period: Column, arrival: Column) -> Column:
    """Return the time of each packet (n,), nanoseconds since the epoch.

    Args:
        clock: nanoseconds modulo ``period``; UNKNOWN where the source does not say, and the arrival
            is returned.
        period: nanoseconds after which the clock starts again.
        arrival: nanoseconds since the epoch.

    """
    period = np.where(clock == UNKNOWN, 1, period)  # then every time may be meant, the arrival too
    before = (arrival - clock) % period
    time: Column = arrival - before + np.where(before > period // 2, period, 0)
    return time
