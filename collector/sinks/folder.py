"""The folder that rotating files are published in, and our own folder inside it.

``DIR/.collector`` holds what no analyser may see: files that are being written (``NAME.part``) or wait
for publishing, the list of what was published, the manifest, a lock. It is a sub-folder because
Suricata's directory mode takes every regular file of any name and ignores folders; it is inside
because renaming needs the same file system.

Everything goes through descriptors of the two folders and follows no symbolic link, so whoever may
write into DIR cannot send us elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from tunnelbridge.errors import UserError

OWN: Final = ".collector"
PART: Final = ".part"
TEMPORARY: Final = ".tmp"
MANIFEST: Final = "manifest.jsonl"
PUBLISHED: Final = "published.jsonl"
_LOCK: Final = "lock"
_SEQUENCE: Final = "sequence"
_KEPT: Final = {MANIFEST, PUBLISHED, _LOCK, _SEQUENCE}
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750
_FAR: Final = 3600 * 10**9
"""Modification times further ahead than this are somebody's mistake."""


class Folder:
    """``DIR`` and ``DIR/.collector``, for one collector at a time.

    Raises UserError where they cannot be used. All other methods raise OSError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        opened: list[int] = []
        try:
            if path.endswith("/"):
                with contextlib.suppress(FileExistsError):
                    Path(path).mkdir(_FOLDER_MODE)
            opened.append(os.open(path, _FOLDER))
            self.shown = opened[0]
            self._make_own()
            opened.append(os.open(OWN, _FOLDER | os.O_NOFOLLOW, dir_fd=self.shown))
            self.own = opened[1]
            opened.append(self.open_own(_LOCK, os.O_RDWR | os.O_CREAT))
            fcntl.flock(opened[2], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, ValueError) as problem:
            for fd in opened:
                os.close(fd)
            reason = problem.strerror if isinstance(problem, OSError) else str(problem)
            if isinstance(problem, BlockingIOError):
                reason = "another collector writes into this folder"
            raise UserError(f"cannot write into {path}: {reason}") from None
        self._opened = opened
        self._sequence = self._last_sequence()

    def _make_own(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(OWN, _FOLDER_MODE, dir_fd=self.shown)

    def close(self) -> None:
        """Let another collector use the folder."""
        for fd in self._opened:
            os.close(fd)

    def open_own(self, name: str, flags: int) -> int:
        """Open a file in our own folder."""
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE, dir_fd=self.own)

    def leftovers(self) -> list[str]:
        """Return the files that an earlier collector has left unpublished, oldest first."""
        with os.scandir(self.own) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in entries
                if entry.is_file(follow_symlinks=False) and entry.name not in _KEPT
            ]
        return [name for _, name in sorted(found)]

    def waiting_octets(self) -> int:
        """Return the octets of all files that are not published yet."""
        return sum(self.status(name, self.own).st_size for name in self.leftovers())

    def newest(self, now: int) -> int:
        """Return the newest modification time (ns) of all regular files in the folder."""
        with os.scandir(self.shown) as entries:
            times = [
                entry.stat(follow_symlinks=False).st_mtime_ns
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            ]
        return max((time for time in times if time < now + _FAR), default=0)

    def status(self, name: str, folder: int | None = None) -> os.stat_result:
        """Return what a file in the folder is, or in another one; follows no link."""
        where = self.shown if folder is None else folder
        return os.stat(name, dir_fd=where, follow_symlinks=False)

    def is_taken(self, name: str) -> bool:
        """Tell whether something of that name is in the folder."""
        try:
            self.status(name)
        except FileNotFoundError:
            return False
        return True

    def create(self, name: str) -> int | None:
        """Open a new file ``NAME.part``; None where the name is taken, here or in our own folder."""
        try:
            fd = self.open_own(name + PART, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        if self.is_taken(name):  # asked last, because files move from there to here
            os.close(fd)
            self.delete(name + PART)
            return None
        return fd

    def rename(self, old: str, new: str, publish: bool = False) -> None:
        """Rename a file of our own folder; ``publish`` moves it out into the folder itself."""
        to = self.shown if publish else self.own
        os.rename(old, new, src_dir_fd=self.own, dst_dir_fd=to)
        if publish:
            os.fsync(self.shown)

    def delete(self, name: str, folder: int | None = None) -> None:
        """Delete a file of our own folder, or of another one."""
        os.unlink(name, dir_fd=self.own if folder is None else folder)

    def next_sequence(self) -> int:
        """Return the next number for a file; a full disk does not matter here."""
        self._sequence += 1
        try:
            fd = self.open_own(_SEQUENCE, os.O_WRONLY | os.O_CREAT)
        except OSError:
            return self._sequence
        with contextlib.suppress(OSError):
            os.pwrite(fd, b"%020d\n" % self._sequence, 0)
        os.close(fd)
        return self._sequence

    def _last_sequence(self) -> int:
        try:
            fd = self.open_own(_SEQUENCE, os.O_RDONLY)
        except OSError:
            return 0
        try:
            return int(os.read(fd, 32))
        except (OSError, ValueError):
            return 0
        finally:
            os.close(fd)
