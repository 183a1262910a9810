"""The kernel's own counters of datagrams that no socket ever saw.

Source: net/ipv4/proc.c and net/ipv6/proc.c; RFC 4293 names the counters.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Final

_FILES: Final = ("/proc/thread-self/net/snmp", "/proc/thread-self/net/snmp6")


class ReassemblyFailures:
    """Datagrams of which fragments were missing or wrong, since this was made.

    The files stay open, so the count is that of the network namespace of the thread that made this,
    whoever asks. A kernel without IPv6 has no second file.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        for path in _FILES:
            with contextlib.suppress(OSError):
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._before = self._total()

    def count(self) -> int:
        """Return how many there were, of the whole namespace: others' datagrams too."""
        return self._total() - self._before

    def close(self) -> None:
        """Close the files; closing twice is no error."""
        for fd in self._files:
            os.close(fd)
        self._files.clear()

    def _total(self) -> int:
        return sum(_failures(_read(fd)) for fd in self._files)


def _read(fd: int) -> str:
    octets = io.BytesIO()
    while chunk := os.pread(fd, 1 << 16, octets.tell()):
        octets.write(chunk)
    return octets.getvalue().decode()


def _failures(text: str) -> int:
    """Return ReasmFails of ``snmp`` (a line of names, a line of numbers) or Ip6ReasmFails."""
    names: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["Ip6ReasmFails"]:
            return int(words[1])
        if words[:1] == ["Ip:"]:
            if names:
                return int(words[names.index("ReasmFails")])
            names = words
    return 0
