"""Names of capture files, from a template: ``{time}-{sequence}``.

``{time}`` is when the file's first frame came, in UTC; ``{time:%Y%m%d-%H%M}`` takes another form
(strftime). ``{stream}`` is the stream's name, ``all`` where a file holds all streams. ``{sequence}``
counts a folder's files, also across restarts; ``{sequence:08}`` sets its digits.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from string import Formatter
from typing import Final

from tunnelbridge.errors import UsageError

TEMPLATE: Final = "{time}-{sequence}"
PER_STREAM: Final = "{stream}-{time}-{sequence}"
EVERYTHING: Final = "all"

_FIELDS: Final = ("time", "stream", "sequence")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.]+")
_LONGEST: Final = 200
"""Octets of a name, so that suffixes still fit into the 255 of most file systems."""


class _Time:
    """A time whose text without a format is short and sorts."""

    def __init__(self, nanoseconds: int) -> None:
        self._time = datetime.fromtimestamp(nanoseconds // 10**9, UTC)

    def __format__(self, form: str) -> str:
        return self._time.strftime(form or "%Y%m%dT%H%M%SZ")


class _Sequence(int):
    def __format__(self, form: str) -> str:
        return int(self).__format__(form or "06")


class Naming:
    """Makes names from a template; raises UsageError for one that cannot work."""

    def __init__(self, template: str | None, per_stream: bool) -> None:
        self._template = template or (PER_STREAM if per_stream else TEMPLATE)
        try:
            fields = {field for _, field, _, _ in Formatter().parse(self._template) if field}
            strange = sorted(fields.difference(_FIELDS))
            if strange:
                raise UsageError(
                    f"--name {template}: no field {{{strange[0]}}},"
                    " expected {time}, {stream} or {sequence}"
                )
            example = self.name(0, 1, "x")
        except (ValueError, IndexError, KeyError) as error:
            raise UsageError(f"--name {template}: {error}") from None
        if not fields.intersection(("time", "sequence")):
            raise UsageError(f"--name {template}: {{time}} or {{sequence}} must tell files apart")
        if per_stream and "stream" not in fields:
            raise UsageError(f"--name {template}: --per-stream needs {{stream}} in it")
        if "/" in example or "\0" in example or example.startswith("."):
            raise UsageError(f"--name {template}: names hold no / and begin with no dot")
        if len(example.encode(errors="surrogateescape")) > _LONGEST:
            raise UsageError(f"--name {template}: too long")

    def name(self, time: int, sequence: int, stream: str = EVERYTHING) -> str:
        """Return a name without suffix; ``time`` is in nanoseconds since the epoch."""
        safe = _UNSAFE.sub("-", stream).strip("-.") or EVERYTHING
        return self._template.format(time=_Time(time), stream=safe, sequence=_Sequence(sequence))
