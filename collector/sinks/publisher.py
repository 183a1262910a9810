"""Publishing finished files: a thread of its own, so that hashing and compressing delay no packet.

Suricata's directory mode reads a file once, when its modification time is newer than that of every
file read before. So a file appears by renaming, complete, with a time of its own that is later than
that of any other, and is never touched again.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from collector.manifest import Manifest, digest
from collector.sinks.capture_file import Summary
from collector.sinks.compression import Compression
from collector.sinks.folder import PART, TEMPORARY, Folder
from collector.sinks.keeping import Keeper
from collector.sinks.limits import Limits
from collector.sinks.recovery import recover

TICK: Final = 1.0
PATIENCE: Final = 1.0
"""Seconds that :meth:`Publisher.close` waits for what fails to work after all."""
_MILLISECOND: Final = 1_000_000
_PACKED: Final = ("", ".gz", ".zst")


@dataclass(slots=True)
class Finished:
    """A file that waits for publishing: ``NAME.part`` in our own folder."""

    name: str
    summary: Summary


class Publisher:
    """Publishes what is finished, and before that what an earlier collector has left.

    Raises UserError or OSError where the lists in the folder cannot be opened.
    """

    def __init__(
        self,
        folder: Folder,
        keep: Limits | None = None,
        compression: Compression | None = None,
        manifest: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._folder = folder
        self._compression = compression
        self._clock = clock
        self._manifest = Manifest(folder) if manifest else None
        self._keeper = Keeper(folder, keep, self._on_deleted)
        self._newest = folder.newest(clock())
        self._left = folder.leftovers()  # before anything new is begun
        self._waiting: deque[Finished] = deque()
        self._queue: queue.SimpleQueue[Finished | bool] = queue.SimpleQueue()
        self._deadline = self._last_try = math.inf
        self._error = ""
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def publish(self, finished: Finished) -> None:
        """Publish a finished file soon; never blocks."""
        self._queue.put(finished)

    def make_room(self) -> None:
        """Delete the oldest published file, if ``--keep`` allows deleting at all."""
        self._queue.put(True)

    def close(self, patience: float) -> bool:
        """Publish what is finished, for about ``patience`` seconds; tell whether that was all."""
        self._deadline = time.monotonic() + patience
        self._last_try = time.monotonic() + min(PATIENCE, patience)
        self._queue.put(False)
        self._thread.join(patience + TICK)
        done = not (self._thread.is_alive() or self._waiting or self._left)
        if not done:
            self._log.warning(
                "files are left to be published at the next start", folder=self._folder.path
            )
        return done

    def _run(self) -> None:
        while self._take() or self._waiting or self._left or self._keeper.has_unlisted:
            self._attempt(self._recover)
            self._attempt(self._publish_waiting)
            self._attempt(self._keep)
            self._attempt(self._keeper.write_list, "published, but not listed yet for --keep")
            if time.monotonic() > (self._last_try if self._error else self._deadline):
                break
        self._keeper.close()
        if self._manifest is not None:
            self._manifest.close()

    def _take(self) -> bool:
        """Take what there is to do; wait for it unless something failed. False at the end."""
        try:
            item = self._queue.get(timeout=TICK)
        except queue.Empty:
            return True
        if isinstance(item, Finished):
            self._waiting.append(item)
        elif item:
            self._attempt(self._keeper.make_room)
        else:
            self._queue.put(False)  # for the next time, if not everything can be published now
            if self._error:
                time.sleep(PATIENCE / 10)
            return False
        return True

    def _attempt(self, work: Callable[[], object], failure: str = "cannot publish") -> None:
        """Do something with files; what fails is told once and tried again later."""
        try:
            work()
        except OSError as problem:
            reason = problem.strerror or str(problem)
            if reason != self._error:
                self._log.error(failure, folder=self._folder.path, error=reason)
            self._error = reason

    def _recover(self) -> None:
        """Queue what an earlier collector has left, delete what was never whole."""
        while self._left:
            self._recover_one(self._left[0])
            del self._left[0]

    def _recover_one(self, name: str) -> None:
        final = name.removesuffix(PART)
        published = any(self._keeper.is_published(final + packed) for packed in _PACKED)
        if name.endswith(TEMPORARY) or (name.endswith(PART) and published):
            self._folder.delete(name)
        elif name.endswith(PART):
            summary = recover(self._folder, name)
            self._log.info("recovered", file=final, packets=summary.packets)
            self._waiting.append(Finished(final, summary))

    def _publish_waiting(self) -> None:
        while self._waiting:
            try:
                self._publish(self._waiting[0])
            except FileNotFoundError:  # somebody has deleted it, or our whole folder
                self._log.warning("is gone before it was published", file=self._waiting[0].name)
            self._waiting.popleft()
            self._error = ""

    def _publish(self, finished: Finished) -> None:
        part = finished.name + PART
        if not finished.summary.packets:
            self._folder.delete(part)
            return
        if self._compression is None:
            self._show(part, finished.name, finished.summary)
            return
        suffix = self._compression.suffix
        packed = finished.name + suffix + TEMPORARY
        try:
            self._compress(self._compression, part, packed)
        except OSError as problem:
            self._log.warning("not compressed", file=finished.name, error=problem.strerror)
            with contextlib.suppress(FileNotFoundError):
                self._folder.delete(packed)
            self._show(part, finished.name, finished.summary)
        else:
            self._show(packed, finished.name + suffix, finished.summary)
            self._folder.delete(part)

    def _compress(self, compression: Compression, part: str, packed: str) -> None:
        source = self._folder.open_own(part, os.O_RDONLY)
        with os.fdopen(source, "rb") as octets:
            to = self._folder.open_own(packed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(to, "wb") as file:
                compression.copy(octets, file)

    def _show(self, staged: str, name: str, summary: Summary) -> None:
        """Move a complete file into the folder, durable and younger than all others."""
        name = self._free_name(name)
        fd = self._folder.open_own(staged, os.O_RDONLY)
        try:
            os.fsync(fd)
            sha256 = digest(fd) if self._manifest is not None else ""
            self._newest = max(self._clock(), self._newest + _MILLISECOND)
            os.utime(fd, ns=(self._newest, self._newest))
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if self._manifest is not None:
            self._manifest.add(name, status.st_size, sha256, summary)
        self._keeper.add(name, status)
        self._folder.rename(staged, name, publish=True)

    def _free_name(self, name: str) -> str:
        """Return the name, or one like it where somebody else has taken it."""
        stem, dot, suffix = name.rpartition(".pcap")
        wanted, number = name, 1
        while self._folder.is_taken(wanted):
            number += 1
            wanted = f"{stem}-{number}{dot}{suffix}"
        return wanted

    def _keep(self) -> None:
        self._keeper.apply(self._clock())

    def _on_deleted(self, name: str) -> None:
        self._log.info("deleted", file=name, folder=self._folder.path)
        if self._manifest is not None:
            self._manifest.delete(name, self._clock())
