"""What users may say of any sink: ``TARGET?filter=EXPR&snaplen=N&queue=SIZE``.

The last ``?`` that a word and ``=`` follow begins the options, so paths with other question marks
stay as they are. Options are separated by ``&`` and a known name, so that a filter may hold an ``&``
of its own. Values are percent-decoded as in URLs (``+`` stays a plus sign); the target never is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from tunnelbridge.errors import UsageError

LONGEST: Final = 262_144
"""Octets of the longest frame anybody accepts (libpcap's MAXIMUM_SNAPLEN): nothing is cut."""
QUEUE_OCTETS: Final = 32_000_000

_OPTIONS: Final = re.compile(r"\?(?=[a-z_]+=)")
_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([kKMGT]?)(i?)(B?)")


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """One sink as it was asked for."""

    target: str
    expression: str = ""
    """A tcpdump expression; frames it does not match are not for this sink."""
    snaplen: int = LONGEST
    """Octets to keep of each frame, at most."""
    queue_octets: int = QUEUE_OCTETS
    """Octets of frames that may wait for the sink's writer."""
    more: dict[str, str] = field(default_factory=dict)
    """Options that only this kind of sink has."""


def parse_sink(
    text: str, option: str, more: Sequence[str] = (), *, queued: bool = True
) -> SinkOptions:
    """Return what ``text`` asks for; raises UsageError.

    Args:
        text: ``TARGET`` or ``TARGET?NAME=VALUE&NAME=VALUE``.
        option: the command line's word for it, for messages: ``--pcap``.
        more: names of options that this kind of sink has beside filter, snaplen and queue.
        queued: whether frames may wait for this kind of sink at all; else it has no ``queue``.

    """
    *_, begin = [None, *_OPTIONS.finditer(text)]
    if begin is None:
        return SinkOptions(text)
    names = ("filter", "snaplen", *(("queue",) if queued else ()), *more)
    values: dict[str, str] = {}
    for part in re.split(f"&(?=(?:{'|'.join(names)})=)", text[begin.end() :]):
        name, _, value = part.partition("=")
        if name not in names:
            raise UsageError(f"{option} {text}: no option {name}, expected {', '.join(names)}")
        if name in values:
            raise UsageError(f"{option} {text}: {name} is given twice")
        values[name] = unquote(value)
    try:
        return SinkOptions(
            target=text[: begin.start()],
            expression=values.pop("filter", ""),
            snaplen=parse_snaplen(values.pop("snaplen", str(LONGEST))),
            queue_octets=parse_size(values.pop("queue", str(QUEUE_OCTETS))),
            more=values,
        )
    except UsageError as error:
        raise UsageError(f"{option} {text}: {error}") from None


def parse_snaplen(text: str) -> int:
    """Return a snap length in octets; raises UsageError."""
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= LONGEST:
        raise UsageError(f"snaplen {text}: expected octets, 1 to {LONGEST}")
    return int(text)


def parse_size(text: str) -> int:
    """Return octets from ``1000``, ``32MB``, ``1.5G``, ``64KiB``; raises UsageError."""
    match = _SIZE.fullmatch(text) if text.isascii() else None
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"size {text}: expected a number and k, M, G or T, as 32MB or 64KiB")
    unit = _UNITS["k" if match[2] == "K" else match[2]]
    if match[3]:
        unit = 1024 ** list(_UNITS.values()).index(unit)
    return int(float(match[1]) * unit)
