"""Whether a pool member is up: as many failures, or answers, in a row as it takes to believe it."""

from __future__ import annotations


class Health:
    """A member's state; up until ``fall`` probes in a row failed, up again after ``rise`` good ones.

    Raises ValueError unless both are at least 1.
    """

    __slots__ = ("_against", "_needed", "up")

    def __init__(self, fall: int = 3, rise: int = 2) -> None:
        if fall < 1 or rise < 1:
            raise ValueError(f"fall {fall} and rise {rise} must be at least 1")
        self._needed = {True: fall, False: rise}
        self._against = 0
        """Probes in a row that spoke against the present state."""
        self.up = True

    def observe(self, ok: bool) -> bool:
        """Take the outcome of a probe; tell whether the member changed its state."""
        self._against = 0 if ok == self.up else self._against + 1
        if self._against < self._needed[self.up]:
            return False
        self.up, self._against = ok, 0
        return True
