"""Send a capture file's packets at their own pace, at a rate, or as fast as the tunnels take them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from tunnelbridge.batch import Column
from tunnelbridge.capture.ethernet import as_ethernet
from tunnelbridge.capture.reader import Capture
from tunnelbridge.errors import UsageError
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.programs import expression_programs
from tunnelbridge.policy.selection import Selection

NANOSECONDS: Final = 1_000_000_000
LONGEST_NAP: Final = 0.05
"""Seconds; a stop is noticed at least this often."""
SLOWEST: Final = 0.001
"""Packets a second; far less would count time in more nanoseconds than 63 bits hold."""


def parse_speed(text: str) -> float | None:
    """Return packets a second: 0 for the capture's own pace, None for as fast as possible."""
    if text == "original":
        return 0.0
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not SLOWEST <= speed < math.inf:
        raise UsageError(
            f"--speed {text}: expected original, max or packets a second, {SLOWEST} or more"
        )
    return speed


class FileSource:
    """A capture file as the one source of every session, whatever their sources are."""

    def __init__(self, policy: Policy) -> None:
        self.sources: tuple[()] = ()
        self._policy = policy
        self.follow_policy()

    def check(self, plans: Sequence[SessionPlan]) -> None:
        """Refuse sessions that a file cannot have; raises UsageError."""
        expression_programs(plans, None)

    def follow_policy(self) -> None:
        """Let the sessions of now decide."""
        sessions = self._policy.for_file()
        programs = expression_programs([session.plan for session in sessions], None)
        self._selection = Selection(sessions, programs)

    def selection(self) -> Selection:
        """Return what decides now."""
        return self._selection


async def replay(
    capture: Capture,
    pipeline: Pipeline,
    selection: Callable[[], Selection],
    speed: float | None,
    stop: asyncio.Event,
    advance: Callable[[int], None],
) -> None:
    """Take a capture file through the pipeline.

    ``selection`` says what is mirrored now; ``advance`` is told the octets read so far.
    """
    clock = asyncio.get_running_loop().time
    began, sent, first, offset = clock(), 0, None, 0
    for captured in capture.batches():
        batch = as_ethernet(captured.batch, captured.linktype)
        count = len(batch)
        if speed is None:
            due: Column = np.zeros(count, np.int64)
        elif speed:
            due = ((sent + np.arange(count)) * (NANOSECONDS / speed)).astype(np.int64)
        else:
            first = int(batch.timestamp[0]) if first is None and count else first
            due = np.maximum.accumulate(batch.timestamp - (first or 0))
        done = 0
        while done < count and not (stop.is_set() or pipeline.is_done):
            elapsed = int((clock() - began) * NANOSECONDS)
            ready = int(np.searchsorted(due, elapsed, side="right"))
            if ready > done:
                pipeline.process(batch.select(np.arange(done, ready)), selection())
                done = ready
                advance(offset + (capture.offset - offset) * done // count)
                await asyncio.sleep(0)
            else:
                nap = (int(due[done]) - elapsed) / NANOSECONDS
                await asyncio.sleep(min(nap, LONGEST_NAP))
        sent += done
        offset = capture.offset
        if stop.is_set() or pipeline.is_done:
            break
