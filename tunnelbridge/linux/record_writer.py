"""Write records of a capture file: to a disk, a pipe or standard output.

One ``writev`` takes up to 1024 pieces straight from where they are. Nothing is buffered here, so
what was written can be read even after ``kill -9``, and a file that runs into a full disk still
ends with a whole record.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunnelbridge.linux import libc
from tunnelbridge.records import Records

_IOV_MAX: Final = 1024
_SLUGS: Final = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EFBIG: "file-limit",
    errno.EPIPE: "reader-gone",
    errno.ECONNRESET: "reader-gone",
}

Vectors = npt.NDArray[np.void]


class Written(NamedTuple):
    """What became of records: the first ``packets`` of them are in the file, the others are not.

    ``octets`` counts the file's growth, record headers included. ``error`` is None or why the
    rest was not written: ``disk-full``, ``file-limit``, ``reader-gone``, ``reader-stalled``,
    ``io-error``.
    """

    packets: int
    octets: int
    error: str | None


class RecordWriter:
    """Writes records behind ``opening`` to an open descriptor, which stays the caller's to close.

    ``opening``, a file's header, is written at once; where that fails, ``error`` says why and each
    :meth:`write` tries again before it writes a record.

    A descriptor in blocking mode may block :meth:`write`; a non-blocking one is waited for at most
    ``patience`` seconds without any progress. Not thread-safe.
    """

    def __init__(self, fd: int, opening: bytes, patience: float = 1.0) -> None:
        self._fd = fd
        self._patience = patience
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._owed = opening  # octets that must come before the next record
        self.error = self._pay()

    def owe(self, octets: bytes) -> None:
        """Have ``octets`` written before the next record; if they cannot be now, then later."""
        self._owed += octets

    def settle(self) -> str | None:
        """Write what is owed now; return why that failed, or None."""
        self.error = self._pay()
        return self.error

    def write(self, records: Records) -> Written:
        """Write all ``records``, or as many as fit, and say how many."""
        self.error = self._pay()
        if self.error is not None or len(records) == 0:
            return Written(0, 0, self.error)
        vectors = _vectors(records)
        done, self.error = self._push(vectors.reshape(-1).copy())
        ends = np.cumsum(records.size)
        packets = int(np.searchsorted(ends, done, "right"))
        whole = int(ends[packets - 1]) if packets else 0
        if done > whole and not self._cut_back(done - whole):
            # The stream already holds the front of this record: it is written, its end is owed.
            record = _gathered(vectors[packets])
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
                return done, cause(problem)
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


def cause(problem: OSError) -> str:
    """Return the word that a failure to write is counted under."""
    return _SLUGS.get(problem.errno or 0, "io-error")


def _vectors(records: Records) -> Vectors:
    """Return the gather list, shape (n, pieces)."""
    vectors = np.empty((len(records), len(records.pieces)), libc.IOVEC)
    for place, piece in enumerate(records.pieces):
        vectors["base"][:, place] = libc.address(piece.memory) + piece.start
        vectors["length"][:, place] = piece.length
    return vectors


def _gathered(vectors: Vectors) -> bytes:
    """Return a copy of one record."""
    return b"".join(ctypes.string_at(base, length) for base, length in vectors.tolist())


def _shorten(vector: Any, left: int) -> None:
    """Make an iovec begin where writing stopped: its last ``left`` octets remain."""
    vector["base"] += vector["length"] - np.uint64(left)
    vector["length"] = left
