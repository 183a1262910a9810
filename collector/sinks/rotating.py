"""``--pcap DIR/``: frames in a series of files, or in one for each stream.

A file is begun by its first frame and ends when the next one would exceed a limit. Ends by time are
aligned to the clock (UTC), and go by when frames came: one that waited in the queue across such an
end still gets into its own file. An idle file ends on time all the same.

A full disk ends no file: it goes on where the last whole record is, as soon as there is room.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from collector.delivery import Delivery
from collector.sinks.capture_file import CaptureFile, StreamNames
from collector.sinks.compression import Compression
from collector.sinks.folder import Folder
from collector.sinks.formats import Format, Pcapng
from collector.sinks.limits import Limits
from collector.sinks.naming import EVERYTHING, Naming
from collector.sinks.options import SinkOptions
from collector.sinks.publisher import Finished, Publisher
from collector.sinks.queued import PATIENCE, QueuedSink
from tunnelbridge.linux.record_writer import Written, cause

ROTATE: Final = Limits(octets=100_000_000, nanoseconds=60 * 10**9)
"""When files end if the user does not say."""
MOST_OPEN: Final = 256
"""Files that are open at once; beyond, the one that has waited longest for a frame ends."""
LAG: Final = 5 * 10**9
"""How long before now a frame may have come, at most; a source's clock may say anything."""
RETRY: Final = 10**9
LAST_FILES: Final = 10.0
"""Seconds that publishing the last files may take."""
_OVERHEAD: Final = 128
"""Octets that a format adds to a frame, at most."""
_EVERYTHING: Final = -1


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What the user wants of the files."""

    form: Format = field(default_factory=Pcapng)
    rotate: Limits = ROTATE
    keep: Limits | None = None
    compression: Compression | None = None
    per_stream: bool = False
    template: str | None = None
    manifest: bool = False


@dataclass(slots=True)
class _Open:
    """A file that is being written."""

    name: str
    fd: int
    file: CaptureFile
    boundary: int | None
    """When it ends, at the latest."""


class RotatingSink(QueuedSink):
    """Writes frames to files in a folder; raises UserError and UsageError."""

    def __init__(
        self,
        options: SinkOptions,
        files: FileOptions,
        streams: StreamNames,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(f"pcap {options.target}", options)
        self._files = files
        self._streams = streams
        self._clock = clock
        self._naming = Naming(files.template, files.per_stream)
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._retry_at = 0
        self._failure = ""
        self._folder = Folder(options.target)
        self._publisher = Publisher(
            self._folder, files.keep, files.compression, files.manifest, clock
        )
        self.start()

    def write(self, delivery: Delivery) -> Written:
        """Write frames to the file of their time, and of their stream with ``--per-stream``."""
        if 0 < self._retry_at - self._clock() <= RETRY:
            return Written(0, 0, self._failure)
        packets = octets = 0
        error = None
        for series, part in self._series(delivery):
            result = self._write_series(series, part)
            packets, octets = packets + result.packets, octets + result.octets
            error = error or result.error
        if error is not None:
            self._failure, self._retry_at = error, self._clock() + RETRY
            if error == "disk-full":
                self._publisher.make_room()
        return Written(packets, octets, error)

    def on_tick(self, now: int) -> None:
        """End files whose time has come."""
        due = [s for s, opened in self._open.items() if opened.boundary and now >= opened.boundary]
        for series in due:
            self._end(series)

    def finish(self) -> None:
        """End all files and publish them."""
        for series in list(self._open):
            self._end(series)

    def close(self) -> None:
        """Write what is queued and publish the last files."""
        super().close()
        if self._publisher.close(LAST_FILES) and not self._thread.is_alive():
            self._folder.close()

    def _series(self, delivery: Delivery) -> list[tuple[int, Delivery]]:
        """Return the frames for each series of files, and its stream."""
        if not self._files.per_stream:
            return [(_EVERYTHING, delivery)]
        if (delivery.stream == delivery.stream[0]).all():
            return [(int(delivery.stream[0]), delivery)]
        order = np.argsort(delivery.stream, kind="stable")
        bounds = np.flatnonzero(np.diff(delivery.stream[order])) + 1
        return [
            (int(delivery.stream[index[0]]), delivery.select(index))
            for index in np.split(order, bounds)
        ]

    def _write_series(self, series: int, delivery: Delivery) -> Written:
        packets = octets = 0
        while len(delivery):
            try:
                count = self._room(series, delivery)
            except OSError as problem:
                return Written(packets, octets, cause(problem))
            part = delivery.select(np.arange(count))
            result = self._open[series].file.write(part)
            packets, octets = packets + result.packets, octets + result.octets
            if result.error is not None:
                if result.error != "disk-full":
                    self._end(series)  # whatever is wrong may be wrong with this file alone
                return Written(packets, octets, result.error)
            if self._open[series].file.summary.packets == self._files.rotate.number:
                self._end(series)
            delivery = delivery.select(np.arange(count, len(delivery)))
        return Written(packets, octets, None)

    def _room(self, series: int, delivery: Delivery) -> int:
        """Return how many of the frames belong into the current file, at least 1; begins it."""
        opened = self._open.get(series)
        count = 0 if opened is None else self._fitting(opened, delivery)
        if count == 0 or opened is None:
            if opened is not None:
                self._end(series)
            opened = self._begin(series, delivery)
            count = max(1, self._fitting(opened, delivery))
        self._open.move_to_end(series)
        return count

    def _fitting(self, opened: _Open, delivery: Delivery) -> int:
        """Return how many of the frames come before the file's end."""
        count = len(delivery)
        if opened.boundary is not None:
            late = self._came(delivery) >= opened.boundary
            count = int(np.argmax(late)) if late.any() else count
        limits = self._files.rotate
        if limits.number is not None:
            count = min(count, limits.number - opened.file.summary.packets)
        if limits.octets is not None and count:
            room = limits.octets - opened.file.size
            if int(delivery.frames.total_length.sum()) + count * _OVERHEAD > room:
                ends = np.cumsum(opened.file.records(delivery).size)
                count = min(count, int(np.searchsorted(ends, room, "right")))
        return count

    def _came(self, delivery: Delivery) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return when each frame came, as far as that can be believed."""
        now = self._clock()
        return np.clip(delivery.frames.timestamp, now - LAG, now)

    def _begin(self, series: int, delivery: Delivery) -> _Open:
        """Begin a file for frames that are about to be written; raises OSError."""
        if len(self._open) >= MOST_OPEN:
            self._end(next(iter(self._open)))
        came = int(self._came(delivery)[0])
        stream = EVERYTHING if series == _EVERYTHING else self._streams(series).key()
        name, fd = self._create(came, stream)
        file = CaptureFile(fd, self._files.form, self._streams, came, PATIENCE)
        period = self._files.rotate.nanoseconds
        boundary = None if period is None else (came // period + 1) * period
        opened = self._open[series] = _Open(name, fd, file, boundary)
        return opened

    def _create(self, came: int, stream: str) -> tuple[str, int]:
        suffix = self._files.form.suffix
        stem = self._naming.name(came, self._folder.next_sequence(), stream)
        name, number = stem + suffix, 1
        while (fd := self._folder.create(name)) is None:
            number += 1
            name = f"{stem}-{number}{suffix}"
        return name, fd

    def _end(self, series: int) -> None:
        """End a file and have it published."""
        opened = self._open.pop(series)
        summary = opened.file.finish(self._clock())
        os.close(opened.fd)
        self._publisher.publish(Finished(opened.name, summary))
