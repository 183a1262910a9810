"""Limits as users write them: ``100MB,60s,1M`` is octets, a time and a number.

A size ends in B, a time in s, min, h or d, a number in nothing, or k, M or G (1,000 each time).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from collector.sinks.options import parse_size
from tunnelbridge.errors import UsageError

_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|h|d)")
_SECOND: Final = 10**9
_NANOSECONDS: Final = {
    "ms": 10**6,
    "s": _SECOND,
    "min": 60 * _SECOND,
    "h": 3600 * _SECOND,
    "d": 86400 * _SECOND,
}
_NUMBER: Final = re.compile(r"(\d+)([kMG]?)")
_THOUSANDS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True, slots=True)
class Limits:
    """What must not be exceeded; None where there is no limit."""

    octets: int | None = None
    nanoseconds: int | None = None
    number: int | None = None


def parse_limits(text: str, option: str) -> Limits:
    """Return the limits in ``text``, any of the three; raises UsageError.

    ``option`` is the command line's word for it, for messages: ``--rotate``.
    """
    limits = Limits()
    for part in text.split(","):
        what, value = _parse(part, option)
        if value == 0:
            raise UsageError(f"{option} {part}: must be more than 0")
        if getattr(limits, what) is not None:
            raise UsageError(f"{option} {text}: two limits of one kind")
        limits = replace(limits, **{what: value})
    return limits


def _parse(part: str, option: str) -> tuple[str, int]:
    time = _TIME.fullmatch(part) if part.isascii() else None
    number = _NUMBER.fullmatch(part) if part.isascii() else None
    if time is not None:
        return "nanoseconds", int(float(time[1]) * _NANOSECONDS[time[2]])
    if number is not None:
        return "number", int(number[1]) * _THOUSANDS[number[2]]
    if part.endswith("B"):
        try:
            return "octets", parse_size(part)
        except UsageError as error:
            raise UsageError(f"{option} {part}: {error}") from None
    raise UsageError(f"{option} {part}: expected a size (100MB), a time (60s, 7d) or a number (1M)")
