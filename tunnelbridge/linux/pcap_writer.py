"""Write batches as a classic pcap file: to a disk, a pipe or standard output.

How records get there, and what happens where they do not fit, is ``record_writer``'s.

Format: draft-ietf-opsawg-pcap; magic 0xA1B23C4D for nanoseconds, 0xA1B2C3D4 for microseconds, in
this machine's byte order.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Final

import numpy as np

from tunnelbridge.batch import Batch
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.record_writer import RecordWriter, Written
from tunnelbridge.records import Records, packets, rows

__all__ = ["RECORD_HEADER", "PcapWriter", "Written", "file_header", "open_pcap", "pcap_records"]

NANOSECONDS: Final = 1_000_000_000
MICROSECONDS: Final = 1_000_000
MAGIC: Final = {NANOSECONDS: 0xA1B23C4D, MICROSECONDS: 0xA1B2C3D4}
LINKTYPE_ETHERNET: Final = 1
SNAPLEN: Final = 262144
"""The longest record that libpcap and Wireshark accept (MAXIMUM_SNAPLEN)."""

FILE_HEADER: Final = np.dtype(
    [
        ("magic", "=u4"),
        ("major", "=u2"),
        ("minor", "=u2"),
        ("reserved1", "=u4"),
        ("reserved2", "=u4"),
        ("snaplen", "=u4"),
        ("linktype", "=u4"),
    ]
)
RECORD_HEADER: Final = np.dtype(
    [("seconds", "=u4"), ("fraction", "=u4"), ("captured", "=u4"), ("original", "=u4")]
)


class PcapWriter:
    """A pcap file behind an open descriptor, which stays the caller's to close.

    Packets longer than ``snaplen`` are cut to it, because readers refuse longer records;
    ``orig_len`` keeps their length. ``resolution`` is the parts of a second that times are told in:
    10**9, or 10**6 for readers that know nothing else. For the rest see :class:`RecordWriter`.
    """

    def __init__(
        self,
        fd: int,
        linktype: int = LINKTYPE_ETHERNET,
        snaplen: int = SNAPLEN,
        patience: float = 1.0,
        resolution: int = NANOSECONDS,
    ) -> None:
        self._snaplen = snaplen
        self._resolution = resolution
        self._writer = RecordWriter(fd, file_header(resolution, linktype, snaplen), patience)

    @property
    def error(self) -> str | None:
        """Why the last attempt to write failed, or None."""
        return self._writer.error

    def write(self, batch: Batch) -> Written:
        """Write all packets of ``batch``, or as many as fit, and say how many."""
        return self._writer.write(pcap_records(batch.cut(self._snaplen), self._resolution))


def file_header(
    resolution: int = NANOSECONDS, linktype: int = LINKTYPE_ETHERNET, snaplen: int = SNAPLEN
) -> bytes:
    """Return what a pcap file begins with."""
    header = np.array([(MAGIC[resolution], 2, 4, 0, 0, snaplen, linktype)], FILE_HEADER)
    return header.tobytes()


def pcap_records(batch: Batch, resolution: int = NANOSECONDS) -> Records:
    """Return packets as records; seconds are taken modulo 2^32 (until 2106)."""
    headers = np.empty(len(batch), RECORD_HEADER)
    seconds = batch.timestamp // NANOSECONDS
    captured = batch.total_length
    headers["seconds"] = (seconds & 0xFFFFFFFF).astype(np.uint32)
    fraction = batch.timestamp - seconds * NANOSECONDS
    headers["fraction"] = (fraction // (NANOSECONDS // resolution)).astype(np.uint32)
    headers["captured"] = captured.astype(np.uint32)
    headers["original"] = np.maximum(batch.wire_length, captured).astype(np.uint32)
    return Records([rows(headers), *packets(batch)], captured + RECORD_HEADER.itemsize)


def open_pcap(path: str) -> int:
    """Open ``path`` for writing, emptied, mode 0640; ``-`` is a descriptor of standard output.

    The descriptor is the caller's to close, that of standard output too. Raises UserError where the
    file cannot be written and UsageError for packets on a terminal.
    """
    if path == "-":
        return _standard_output()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.set_blocking(fd, False)  # a FIFO's reader must not be able to hold us
            return fd
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise UserError(f"cannot write {path}: {reason}") from None
    try:  # emptied only when it is ours alone
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
    except OSError as problem:
        os.close(fd)
        taken = isinstance(problem, BlockingIOError)
        reason = "another program is writing it" if taken else problem.strerror
        raise UserError(f"cannot write {path}: {reason}") from None
    return fd


def _standard_output() -> int:
    try:
        if os.isatty(1):
            raise UsageError(
                "refusing to write packets to a terminal: redirect standard output or name a file"
            )
        if stat.S_ISFIFO(os.fstat(1).st_mode):
            try:  # an open file of our own: O_NONBLOCK must not reach the pipe's other users
                return os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                pass
        return os.dup(1)
    except OSError as problem:
        raise UserError(f"cannot write to standard output: {problem.strerror}") from None
