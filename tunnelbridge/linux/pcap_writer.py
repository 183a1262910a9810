"""Write batches as a nanosecond pcap file: to a disk, a pipe or standard output.

One ``writev`` takes up to 1024 pieces straight from the batch's memory: record header, head, body.
Nothing is buffered here, so what was written can be read even after ``kill -9``, and a file that
runs into a full disk still ends with a whole record.

Format: draft-ietf-opsawg-pcap; magic 0xA1B23C4D in this machine's byte order.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import libc

MAGIC: Final = 0xA1B23C4D
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
    [("seconds", "=u4"), ("nanoseconds", "=u4"), ("captured", "=u4"), ("original", "=u4")]
)

_IOV_MAX: Final = 1024
_SECOND: Final = 1_000_000_000
_SLUGS: Final = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EFBIG: "file-limit",
    errno.EPIPE: "reader-gone",
    errno.ECONNRESET: "reader-gone",
}

Vectors = npt.NDArray[np.void]


class Written(NamedTuple):
    """What became of a batch: the first ``packets`` of it are in the file, the others are not.

    ``octets`` counts the file's growth, record headers included. ``error`` is None or why the
    rest was not written: ``disk-full``, ``file-limit``, ``reader-gone``, ``reader-stalled``,
    ``io-error``.
    """

    packets: int
    octets: int
    error: str | None


class PcapWriter:
    """A pcap file behind an open descriptor, which stays the caller's to close.

    The file header is written at once; where that fails, ``error`` says why and each
    :meth:`write` tries again before it writes a packet. Packets longer than ``snaplen`` are cut to
    it, because readers refuse longer records; ``orig_len`` keeps their length.

    A descriptor in blocking mode may block :meth:`write`; a non-blocking one is waited for at most
    ``patience`` seconds without any progress. Not thread-safe.
    """

    def __init__(
        self,
        fd: int,
        linktype: int = LINKTYPE_ETHERNET,
        snaplen: int = SNAPLEN,
        patience: float = 1.0,
    ) -> None:
        self._fd = fd
        self._snaplen = snaplen
        self._patience = patience
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        header = np.array([(MAGIC, 2, 4, 0, 0, snaplen, linktype)], FILE_HEADER)
        self._owed = header.tobytes()  # octets that must come before the next record
        self.error = self._pay()

    def write(self, batch: Batch) -> Written:
        """Write all packets of ``batch``, or as many as fit, and say how many."""
        self.error = self._pay()
        if self.error is not None or len(batch) == 0:
            return Written(0, 0, self.error)
        batch = batch.cut(self._snaplen)
        records = _record_headers(batch)
        done, self.error = self._push(_vectors(batch, records).reshape(-1))
        ends = np.cumsum(batch.total_length + RECORD_HEADER.itemsize)
        packets = int(np.searchsorted(ends, done, "right"))
        whole = int(ends[packets - 1]) if packets else 0
        if done > whole and not self._cut_back(done - whole):
            # The stream already holds the front of this record: it is written, its end is owed.
            record = records[packets].tobytes() + batch.octets(packets)
            self._owed = record[done - whole :]
            return Written(packets + 1, whole + len(record), self.error)
        return Written(packets, whole, self.error)

    def _pay(self) -> str | None:
        """Write what is owed; return None when nothing is owed any more."""
        if not self._owed:
            return None
        octets = np.frombuffer(self._owed, np.uint8)
        done, error = self._push(np.array([(libc.address(octets), octets.size)], libc.IOVEC))
        if error is not None and done and self._cut_back(done):
            done = 0
        self._owed = self._owed[done:]
        return error

    def _push(self, vectors: Vectors) -> tuple[int, str | None]:
        """Write all of ``vectors`` (changing them); return octets written and what stopped it."""
        ends = np.cumsum(vectors["length"].astype(np.int64))
        done = first = 0
        while done < ends[-1]:
            count = min(_IOV_MAX, len(vectors) - first)
            try:
                written = libc.writev(self._fd, libc.address(vectors[first:]), count)
            except InterruptedError:
                continue
            except BlockingIOError:
                if self._wait():
                    continue
                return done, "reader-stalled"
            except OSError as problem:
                return done, _SLUGS.get(problem.errno or 0, "io-error")
            if written == 0:
                return done, "io-error"
            done += written
            first = int(np.searchsorted(ends, done, "right"))
            if first < len(vectors):
                _shorten(vectors[first], int(ends[first]) - done)
        return done, None

    def _wait(self) -> bool:
        """Wait for the reader of a non-blocking descriptor; tell whether it made room."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(self._patience * 1000))

    def _cut_back(self, octets: int) -> bool:
        """Take the last ``octets`` octets off a regular file; tell whether that worked."""
        if not self._is_file:
            return False
        try:  # the position, not a count of our own: standard output may be opened for appending
            end = os.lseek(self._fd, 0, os.SEEK_CUR) - octets
            os.ftruncate(self._fd, end)
            os.lseek(self._fd, end, os.SEEK_SET)
        except OSError:
            return False
        return True


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


def _record_headers(batch: Batch) -> npt.NDArray[np.void]:
    """Return one record header per packet; seconds are taken modulo 2^32 (until 2106)."""
    headers = np.empty(len(batch), RECORD_HEADER)
    seconds = batch.timestamp // _SECOND
    captured = batch.total_length
    headers["seconds"] = (seconds & 0xFFFFFFFF).astype(np.uint32)
    headers["nanoseconds"] = (batch.timestamp - seconds * _SECOND).astype(np.uint32)
    headers["captured"] = captured.astype(np.uint32)
    headers["original"] = np.maximum(batch.wire_length, captured).astype(np.uint32)
    return headers


def _vectors(batch: Batch, records: npt.NDArray[np.void]) -> Vectors:
    """Return the gather list, shape (n, 2 or 3): record header, head where there is one, body."""
    has_head = batch.head_start is not None and batch.head_length is not None
    vectors = np.empty((len(batch), 3 if has_head else 2), libc.IOVEC)
    vectors["base"][:, 0] = libc.address(records) + np.arange(len(batch)) * RECORD_HEADER.itemsize
    vectors["length"][:, 0] = RECORD_HEADER.itemsize
    if batch.head_start is not None and batch.head_length is not None:
        vectors["base"][:, 1] = libc.address(batch.head) + batch.head_start
        vectors["length"][:, 1] = batch.head_length
    vectors["base"][:, -1] = libc.address(batch.memory) + batch.start
    vectors["length"][:, -1] = batch.length
    return vectors


def _shorten(vector: Any, left: int) -> None:
    """Make an iovec begin where writing stopped: its last ``left`` octets remain."""
    vector["base"] += vector["length"] - np.uint64(left)
    vector["length"] = left
