"""A tap for each stream, named PREFIX0, PREFIX1 and so on as the streams appear.

The first is there from the start, the others once their stream is: creating one takes some
milliseconds, which all sinks wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import structlog

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.options import SinkOptions
from collector.sinks.selection import Selection
from collector.sinks.tap import write
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.tap import LONGEST_NAME, Tap, open_tap

MOST: Final = 64
"""Taps, unless ``?most=N`` says otherwise."""
TOO_MANY: Final = "too-many-streams"
FAILED: Final = "no-tap"


class TapPerStreamSink:
    """Writes each stream's frames to a tap of its own, at once.

    The target is ``[NETNS:]PREFIX``. Frames of streams beyond the last tap are dropped and counted.
    ``name_of`` returns the name of the stream of that number. Raises UsageError for a wrong prefix,
    number or filter, UserError where the first tap cannot be had.
    """

    def __init__(self, options: SinkOptions, name_of: Callable[[int], str]) -> None:
        self._selection = Selection(options)
        self._most = _most(options)
        namespace, separator, self._prefix = options.target.rpartition(":")
        self._namespace = namespace if separator else None
        longest = LONGEST_NAME - len(str(self._most - 1))
        if not 1 <= len(self._prefix.encode()) <= longest:
            raise UsageError(
                f"--tap-per-stream {options.target}: expected 1 to {longest} characters"
            )
        self._name_of = name_of
        self._place: dict[int, int] = {}
        """Which tap a stream's frames go to."""
        self._taps: list[Tap | None] = [self._open(0)]
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self.ledger = SinkLedger(f"tap-per-stream {options.target}")

    def put(self, delivery: Delivery) -> None:
        """Write what the sink wants of the frames."""
        delivery = self._selection.apply(delivery, self.ledger)
        streams, first = np.unique(delivery.stream, return_index=True)
        for stream in streams[np.argsort(first)].tolist():
            chosen = delivery
            if len(streams) > 1:
                chosen = delivery.select(np.flatnonzero(delivery.stream == stream))
            place = self._place.get(stream)
            if place is None:
                place = self._find(stream)
            self._write(place, chosen)

    def tick(self, now: int) -> None:
        """Nothing is ever due."""

    def is_gone(self) -> bool:
        """Never: a tap takes frames whether somebody listens or not."""
        return False

    def close(self) -> None:
        """Take the taps away."""
        for tap in filter(None, self._taps):
            tap.close()

    def _write(self, place: int, delivery: Delivery) -> None:
        if place >= self._most:
            self.ledger.dropped[TOO_MANY] += len(delivery)
            return
        tap = self._taps[place]
        if tap is None:
            self.ledger.dropped[FAILED] += len(delivery)
        else:
            write(tap, delivery.frames, self.ledger)

    def _find(self, stream: int) -> int:
        """Give a stream that was not seen before the next tap, and say so."""
        place = self._place[stream] = len(self._place)
        told = {"sink": self.ledger.name, "stream": self._name_of(stream)}
        if place == self._most:
            self._log.error("no taps left: streams from here on are dropped", **told)
        if place < self._most:
            try:
                if place:
                    self._taps.append(self._open(place))
                self._log.info("stream on a tap", tap=f"{self._prefix}{place}", **told)
            except UserError as error:
                self._taps.append(None)
                self._log.error("stream without a tap", reason=str(error), **told)
        return place

    def _open(self, place: int) -> Tap:
        return open_tap(f"{self._prefix}{place}", self._namespace)


def _most(options: SinkOptions) -> int:
    text = options.more.get("most", str(MOST))
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 10_000:
        raise UsageError(f"--tap-per-stream: most={text}: expected a number of taps, 1 to 10000")
    return int(text)
