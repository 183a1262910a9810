"""What a killed collector has left: a file that is whole but for its last record, and not published."""

from __future__ import annotations

import os
from pathlib import Path

from collector.sinks.capture_file import Summary
from collector.sinks.folder import Folder
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.errors import UserError


def recover(folder: Folder, name: str) -> Summary:
    """Cut a file of our own folder after its last whole record; return what it holds.

    A file without packets gives an empty summary. Raises OSError.
    """
    fd = folder.open_own(name, os.O_RDWR)
    try:
        summary, whole = _read(fd)
        if summary.packets and whole < os.fstat(fd).st_size:
            os.ftruncate(fd, whole)
        return summary
    finally:
        os.close(fd)


def _read(fd: int) -> tuple[Summary, int]:
    """Return what a file holds, and how many of its octets are whole records."""
    summary = Summary(recovered=True)
    try:
        capture = open_capture(Path(f"/proc/self/fd/{fd}"))
    except UserError:  # not even a header
        return summary, 0
    for batch, _ in capture.batches():
        summary.add(batch.timestamp, int(batch.length.sum()))
    return summary, capture.total_octets if capture.damage is None else capture.offset
