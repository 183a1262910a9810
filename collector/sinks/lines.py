"""Files of JSON lines that are only appended to, and survive being cut off anywhere."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Iterator
from typing import Any, Final

from collector.sinks.folder import TEMPORARY, Folder

RESERVED: Final = 8192
"""Octets on disk that the next lines have for themselves, so that a full disk does not stop them."""
_KEEP_SIZE: Final = 1  # linux/falloc.h: the file's length stays as it is

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


class Lines:
    """One file of JSON lines in our own folder; a torn last line is taken off.

    Methods raise OSError.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._fd = folder.open_own(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with open(self._fd, "rb", closefd=False) as file:
            octets = file.read()
        self.torn = not octets.endswith(b"\n") and bool(octets)
        self._text = octets[: octets.rfind(b"\n") + 1]
        if self.torn:
            os.ftruncate(self._fd, len(self._text))
        _reserve(self._fd)

    def take(self) -> Iterator[dict[str, Any]]:
        """Yield what was in the file when it was opened; once. Skips lines that are no objects."""
        lines, self._text = self._text.splitlines(), b""
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found

    def append(self, line: dict[str, Any]) -> None:
        """Append a line, all of it or nothing."""
        octets = as_line(line)
        size = os.fstat(self._fd).st_size
        written = 0
        try:
            written = os.write(self._fd, octets)
        finally:
            if written != len(octets):
                os.ftruncate(self._fd, size)
        if written != len(octets):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _reserve(self._fd)

    def sync(self) -> None:
        """Have what was appended survive a power cut."""
        os.fsync(self._fd)

    def replace(self, lines: list[dict[str, Any]]) -> None:
        """Have the file hold only these lines."""
        name = self._name + TEMPORARY
        fd = self._folder.open_own(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.writelines(map(as_line, lines))
            self._folder.rename(name, self._name)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        _reserve(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _reserve(fd: int) -> None:
    """Have room behind a file's end, if there is any and the file system can (fallocate(2))."""
    _fallocate(fd, _KEEP_SIZE, os.fstat(fd).st_size, RESERVED)


def as_line(line: dict[str, Any]) -> bytes:
    """Return an object as one line, always the same way."""
    return json.dumps(line, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
