"""Open a capture file and read it in batches that point into the mapped file."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from tunnelbridge.batch import Octets
from tunnelbridge.capture import pcap, pcapng
from tunnelbridge.capture.progress import CaptureBatch, Progress
from tunnelbridge.errors import UserError

__all__ = ["Capture", "CaptureBatch", "open_capture"]

_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
}


class Capture:
    """A pcap or pcapng file, mapped read-only.

    Batches stay valid for as long as they are referred to: they hold the mapping. Whoever cuts the
    file short meanwhile ends this process with SIGBUS, as with every mapped file.
    """

    def __init__(self, memory: Octets) -> None:
        self._memory = memory
        self._progress = Progress()

    @property
    def total_octets(self) -> int:
        """The file's size."""
        return self._memory.size

    @property
    def offset(self) -> int:
        """The file offset up to which packets have been given out."""
        return self._progress.offset

    @property
    def damage(self) -> str | None:
        """Where and why the last :meth:`batches` ended early, or None for a file that is whole.

        Settled once the iteration has ended.
        """
        return self._progress.damage

    def batches(self, size: int = 1024) -> Iterator[CaptureBatch]:
        """Yield all packets from the beginning, at most ``size`` (> 0) at a time.

        A batch holds packets of one linktype. Never raises on the file's content: it is read up to
        the first damage, which :attr:`damage` then describes.
        """
        self._progress = Progress()
        read = pcap.batches if self._memory[:4].tobytes() in pcap.FORMATS else pcapng.batches
        return read(self._memory, size, self._progress)


def open_capture(path: Path) -> Capture:
    """Map a capture file and recognise it by its first octets.

    Raises UserError for a path that cannot be read and for a file that is neither pcap nor pcapng.
    """
    try:
        memory = _map(path)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise UserError(f"cannot read {path}: {reason}") from None
    start = memory[:8].tobytes()
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(f"{path} is compressed with {kind}: decompress it first")
    if start[:4] not in pcap.FORMATS and start[:4] != pcapng.MAGIC:
        empty = " (it is empty)" if memory.size == 0 else ""
        raise UserError(f"{path} is not a pcap or pcapng file{empty}")
    return Capture(memory)


def _map(path: Path) -> Octets:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe may not block
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"cannot read {path}: it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"cannot read {path}: it is not a regular file; save it to one first")
        if status.st_size == 0:
            return np.zeros(0, np.uint8)
        return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)
