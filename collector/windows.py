"""Windows of time as users write them: ``--dedup 5``, ``--reorder 500us``."""

from __future__ import annotations

import re
from typing import Final

from tunnelbridge.errors import UsageError

_UNITS: Final = {"us": 10**3, "": 10**6, "ms": 10**6, "s": 10**9}
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|)")
LONGEST: Final = 60 * 10**9


def parse_window(text: str, option: str) -> int:
    """Return nanoseconds of ``5`` or ``5ms``, ``500us``, ``1.5s``; raises UsageError."""
    match = _TIME.fullmatch(text) if text.isascii() else None
    window = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 0 < window <= LONGEST:
        raise UsageError(
            f"{option} {text}: expected milliseconds, or a number with us, ms or s; at most 60s"
        )
    return window
