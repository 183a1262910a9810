"""What to do when somebody else uses an address that we answer for (RFC 5227 §2.4 (b)).

RFC 4862 leaves it open for IPv6; the same is done there. Time is an argument.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

DEFEND_INTERVAL: Final = 10.0
"""Seconds between two conflicts that may both be met with an announcement (RFC 5227 §1.1)."""


class Step(Enum):
    """What to do about a conflict."""

    DEFEND = auto()
    """Announce the address once."""
    GIVE_UP = auto()
    """Use the address no more."""
    NOTHING = auto()


class Defence:
    """Remembers conflicts: the first one is met with an announcement, a second one soon after not.

    An address that was given up is probed, and taken back once nobody answered.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._is_probed: dict[str, bool] = {}

    @property
    def given_up(self) -> list[str]:
        """The addresses that are somebody else's for now."""
        return list(self._is_probed)

    def meet(self, address: str, now: float) -> Step:
        """Say what to do about a conflict for ``address`` at ``now`` (seconds)."""
        if address in self._is_probed:
            self._is_probed[address] = False
            return Step.NOTHING
        before = self._last.get(address)
        self._last[address] = now
        if before is None or now - before >= DEFEND_INTERVAL:
            return Step.DEFEND
        self._is_probed[address] = False
        return Step.GIVE_UP

    def review(self) -> tuple[list[str], list[str]]:
        """Return the addresses to take back, and those to probe until the next review."""
        free = [address for address, asked in self._is_probed.items() if asked]
        for address in free:
            del self._is_probed[address], self._last[address]
        for address in self._is_probed:
            self._is_probed[address] = True
        return free, self.given_up
