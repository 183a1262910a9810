"""``--keep``: which published files stay.

Only files that a collector has published here are ever deleted, and only while they are what was
published: a list remembers name, inode, size and modification time, also across restarts.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from collector.sinks.folder import PUBLISHED, Folder
from collector.sinks.limits import Limits
from collector.sinks.lines import Lines


@dataclass(frozen=True, slots=True)
class Kept:
    """One published file."""

    name: str
    inode: int
    size: int
    mtime: int


class Keeper:
    """The list of published files, oldest first, and what to do when there are too many.

    Methods raise OSError.
    """

    def __init__(
        self, folder: Folder, limits: Limits | None, deleted: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._deleted = deleted
        self._lines = Lines(folder, PUBLISHED)
        self._unlisted: list[Kept] = []
        before = [_kept(line) for line in self._lines.take()]
        self._files = {kept.name: kept for kept in before if kept and self._is_ours(kept)}
        if len(self._files) < len(before):
            self._lines.replace([asdict(kept) for kept in self._files.values()])

    def add(self, name: str, status: Any) -> None:
        """Remember a file that is about to be published; a full disk does not keep it from that."""
        kept = Kept(name, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._files.get(name) != kept:
            self._files[name] = kept
            self._unlisted.append(kept)
            with contextlib.suppress(OSError):
                self.write_list()

    @property
    def has_unlisted(self) -> bool:
        """Tell whether published files are not in the list yet."""
        return bool(self._unlisted)

    def write_list(self) -> None:
        """Write what could not be written into the list before."""
        while self._unlisted:
            self._lines.append(asdict(self._unlisted[0]))
            del self._unlisted[0]

    def is_published(self, name: str) -> bool:
        """Tell whether that file is one of ours, and there."""
        kept = self._files.get(name)
        return kept is not None and self._is_ours(kept)

    def apply(self, now: int) -> None:
        """Delete the oldest files until the rest is within the limits."""
        if self._limits is None:
            return
        octets = sum(kept.size for kept in self._files.values())
        if self._limits.octets is not None:
            octets += self._folder.waiting_octets()
        while self._files:
            oldest = next(iter(self._files.values()))
            if not self._is_too_much(octets, now - oldest.mtime):
                return
            octets -= oldest.size
            self._delete(oldest)

    def make_room(self) -> None:
        """Delete the oldest file, because the disk is full."""
        if self._limits is not None and self._files:
            self._delete(next(iter(self._files.values())))

    def close(self) -> None:
        """Close the list."""
        self._lines.close()

    def _is_too_much(self, octets: int, age: int) -> bool:
        assert self._limits is not None
        limits = self._limits
        return (
            (limits.octets is not None and octets > limits.octets)
            or (limits.nanoseconds is not None and age > limits.nanoseconds)
            or (limits.number is not None and len(self._files) > limits.number)
        )

    def _delete(self, kept: Kept) -> None:
        if self._is_ours(kept):
            self._folder.delete(kept.name, self._folder.shown)
            self._deleted(kept.name)
        del self._files[kept.name]

    def _is_ours(self, kept: Kept) -> bool:
        """Tell whether the file is still the one that was published."""
        try:
            status = self._folder.status(kept.name)
        except FileNotFoundError:
            return False
        same = Kept(kept.name, status.st_ino, status.st_size, status.st_mtime_ns) == kept
        return same and stat.S_ISREG(status.st_mode)


def _kept(line: dict[str, Any]) -> Kept | None:
    """Return a line of the list, None where it cannot be one of ours."""
    try:
        kept = Kept(line["name"], line["inode"], line["size"], line["mtime"])
    except KeyError:
        return None
    is_name = isinstance(kept.name, str) and "/" not in kept.name and not kept.name.startswith(".")
    return kept if is_name else None
