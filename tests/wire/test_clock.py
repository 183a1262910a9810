"""Clocks that wrap, against whole numbers: the right time is the one that was stamped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelbridge.wire.clock import PERIOD_SECONDS, unwrap
from tunnelbridge.wire.layer import UNKNOWN

PERIODS = [2**32 * 100_000, 2**32 * 100, 2**32, PERIOD_SECONDS]
NOW = 1_700_000_000_123_456_789


def one(clock: int, period: int, arrival: int) -> int:
    columns = (np.array([value], np.int64) for value in (clock, period, arrival))
    (time,) = unwrap(*columns).tolist()
    return time


@given(st.sampled_from(PERIODS), st.integers(0, 4 * 10**18), st.data())
def test_a_stamp_is_read_back_if_the_clock_is_within_half_a_period(
    period: int, stamped: int, data: st.DataObject
) -> None:
    off = data.draw(st.integers(-(period // 2) + 1, period // 2 - 1))
    arrival = min(max(stamped + off, 0), 2 * 10**18 * 2)

    assert one(stamped % period, period, arrival) == stamped


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("late", [0, 1, 1000, 10**9])
def test_around_the_wrap(period: int, late: int) -> None:
    """The arrival is behind the wrap and the stamp in front of it, and the other way round."""
    wrap = NOW // period * period
    for stamped, arrival in ((wrap - 1, wrap + late), (wrap, wrap - late), (wrap + late, wrap - 1)):
        assert one(stamped % period, period, arrival) == stamped


def test_who_says_nothing_arrived_when_it_arrived() -> None:
    clock = np.array([5, UNKNOWN, 7])
    period = np.array([100, UNKNOWN, 100])
    arrival = np.array([203, 204, 290])

    assert unwrap(clock, period, arrival).tolist() == [205, 204, 307]
    none = np.zeros(0, np.int64)
    assert unwrap(none, none, none).tolist() == []
