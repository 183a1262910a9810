"""A member's state against counting by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelbridge.clone.health import Health


def by_hand(fall: int, rise: int, outcomes: list[bool]) -> list[bool]:
    """Return the state after each probe: it is what the last run long enough for it says."""
    states = []
    for end in range(1, len(outcomes) + 1):
        up = True
        for start in range(end):
            if up and not any(outcomes[start : start + fall]) and start + fall <= end:
                up = False
            elif not up and all(outcomes[start : start + rise]) and start + rise <= end:
                up = True
        states.append(up)
    return states


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.booleans(), max_size=30))
def test_as_counted_by_hand(fall: int, rise: int, outcomes: list[bool]) -> None:
    health, states, before = Health(fall, rise), [], True
    for outcome in outcomes:
        changed = health.observe(outcome)
        assert changed == (health.up != before)
        before = health.up
        states.append(health.up)
    assert states == by_hand(fall, rise, outcomes)


def test_up_at_the_start_and_a_good_probe_forgives() -> None:
    health = Health()
    assert health.up
    told = [health.observe(ok) for ok in (False, False, True, False, False, False, True, True)]
    assert told == [False, False, False, False, False, True, False, True]


@pytest.mark.parametrize(("fall", "rise"), [(0, 1), (1, 0), (-1, 2)])
def test_no_probe_at_all_decides_nothing(fall: int, rise: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Health(fall, rise)
