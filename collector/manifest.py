"""``--manifest``: what was published, as a chain that shows later changes; ``collector verify``.

``DIR/.collector/manifest.jsonl`` has a JSON line for each file: name, size, SHA-256, times, packets,
octets, streams, losses. ``previous`` is the ``chain`` of the line before (64 zeros at first), and
``chain`` is the SHA-256 of the line without it, as written. So nothing can be changed, taken out or
put in without changing every later line; who keeps the last ``chain`` elsewhere can prove the rest.
A file that ``--keep`` has deleted gets a line that says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from collector.sinks.capture_file import Summary
from collector.sinks.folder import MANIFEST, OWN, Folder
from collector.sinks.lines import Lines, as_line
from tunnelbridge.errors import UserError

START: Final = "0" * 64
_SUFFIXES: Final = tuple(
    kind + packed for kind in (".pcap", ".pcapng") for packed in ("", ".gz", ".zst")
)


class Manifest:
    """The manifest of a folder, to append to; methods raise OSError."""

    def __init__(self, folder: Folder) -> None:
        self._lines = Lines(folder, MANIFEST)
        last = deque(self._lines.take(), 1)
        self._last: dict[str, Any] = last[0] if last else {}

    def add(self, name: str, size: int, sha256: str, summary: Summary) -> None:
        """Append a file that is about to be published; not again after a crash."""
        if self._last.get("name") == name and self._last.get("sha256") == sha256:
            return
        self._append(
            {
                "name": name,
                "size": size,
                "sha256": sha256,
                "first": as_text(summary.first),
                "last": as_text(summary.last),
                "packets": summary.packets,
                "octets": summary.octets,
                "streams": summary.streams,
                "losses": {
                    "lost": summary.lost,
                    "dropped": summary.dropped,
                    "truncated": summary.truncated,
                },
                "recovered": summary.recovered,
            }
        )

    def delete(self, name: str, now: int) -> None:
        """Append that a file has been deleted."""
        self._append({"deleted": name, "time": as_text(now)})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def _append(self, line: dict[str, Any]) -> None:
        line["previous"] = self._last.get("chain", START)
        line["chain"] = chain(line)
        self._lines.append(line)
        self._lines.sync()
        self._last = line


def chain(line: dict[str, Any]) -> str:
    """Return the hash of a line without its own ``chain``."""
    rest = {name: value for name, value in line.items() if name != "chain"}
    return hashlib.sha256(as_line(rest)).hexdigest()


def as_text(nanoseconds: int) -> str:
    """Return a time as ISO 8601 with nanoseconds, UTC."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"


def digest(fd: int) -> str:
    """Return the SHA-256 of a file that has just been opened."""
    with open(fd, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Verification:
    """A check of a folder against its manifest; raises UserError where there is none."""

    def __init__(self, path: Path) -> None:
        self.files = 0
        """Files that the manifest says are there."""
        self.last = START
        """The chain's last hash, to be kept elsewhere."""
        self._path = path
        try:
            self._octets = (path / OWN / MANIFEST).read_bytes()
        except OSError as problem:
            raise UserError(f"cannot read the manifest of {path}: {problem.strerror}") from None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, one line each: first the chain, then the files."""
        expected: dict[str, str] = {}
        yield from self._chain(expected)
        self.files = len(expected)
        for name, sha256 in expected.items():
            problem = self._file(name, sha256)
            if problem:
                yield f"{name}: {problem}"
        for entry in sorted(self._path.iterdir()):
            if entry.name.endswith(_SUFFIXES) and entry.name not in expected:
                yield f"{entry.name}: is not in the manifest"

    def _chain(self, expected: dict[str, str]) -> Iterator[str]:
        """Walk the lines; note in ``expected`` the files that should be there."""
        previous = START
        if self._octets and not self._octets.endswith(b"\n"):
            yield "the manifest's last line is cut"
        for number, octets in enumerate(self._octets.splitlines(), 1):
            try:
                line = json.loads(octets)
                told, before = line["chain"], line["previous"]
                if "deleted" in line:
                    expected.pop(line["deleted"], None)
                else:
                    expected[str(line["name"])] = line["sha256"]
            except (ValueError, KeyError, TypeError):
                yield f"line {number} of the manifest is damaged"
                continue
            if told != chain(line) or as_line(line) != octets + b"\n":
                yield f"line {number} of the manifest was changed"
            if before != previous:
                yield f"line {number} of the manifest does not follow the line before"
            previous = self.last = told

    def _file(self, name: str, sha256: str) -> str | None:
        if "/" in name or name in ("", ".", ".."):
            return "is no name of a file here"
        try:
            fd = os.open(
                self._path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except FileNotFoundError:
            return "is missing"
        except OSError as problem:
            return f"cannot be read: {problem.strerror}"
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return "is not a regular file"
            return None if digest(fd) == sha256 else "was changed"
        finally:
            os.close(fd)
