"""A rotating sink with a clock of its own, and what tests ask of the files it leaves."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from delivered import delivery

import lab
from collector.ledger import StreamLedger
from collector.sinks.options import SinkOptions
from collector.sinks.rotating import FileOptions, RotatingSink
from tunnelbridge.batch import from_packets
from tunnelbridge.capture.reader import open_capture

START = 1_700_000_040_000_000_000
"""A whole minute; the clock begins here."""
SECOND = 10**9
SIZE = 100


def frame(number: int, size: int = SIZE) -> bytes:
    """A frame that tells its number."""
    return bytes.fromhex("020000000001020000000002") + b"\x88\xb5" + number.to_bytes(size - 14)


def number_of(octets: bytes) -> int:
    return int.from_bytes(octets[14:])


def name_of(stream: int) -> StreamLedger:
    return StreamLedger(f"192.0.2.{stream}", "vxlan", stream)


class Rig:
    """One sink over ``folder``, fed synchronously with numbered frames."""

    def __init__(
        self, folder: Path, expression: str = "", snaplen: int = 9999, **files: Any
    ) -> None:
        self.folder = folder
        self.now = files.pop("now", START)
        self.sent = 0
        self.sink = RotatingSink(
            SinkOptions(f"{folder}/", expression, snaplen),
            FileOptions(**files),
            name_of,
            lambda: self.now,
        )

    def put(self, count: int, size: int = SIZE, **columns: Any) -> None:
        """Have ``count`` frames written, and wait for it."""
        batch = from_packets([frame(self.sent + i, size) for i in range(count)], self.now)
        self.sent += count
        columns.setdefault("stream", np.zeros(count))
        if "timestamp" in columns:
            batch.timestamp = np.asarray(columns.pop("timestamp"), np.int64)
        self.sink.put(delivery(batch, **columns))
        self.settle()

    def settle(self) -> None:
        lab.until(lambda: not self.sink.ledger.queued, 10, "the writer")

    def tick(self) -> None:
        self.sink.tick(self.now)
        lab.until(lambda: not self.sink._tick_waits, 10, "the tick")

    def published(self, count: int) -> list[Path]:
        """Return the published files, once there are that many."""
        lab.until(lambda: len(files_in(self.folder)) >= count, 10, f"{count} files")
        return files_in(self.folder)


@contextlib.contextmanager
def rig(folder: Path, expression: str = "", **files: Any) -> Iterator[Rig]:
    """Make a rig and close its sink at the end."""
    made = Rig(folder, expression, **files)
    try:
        yield made
    finally:
        made.sink.close()


def files_in(folder: Path) -> list[Path]:
    """Return what is published, oldest first."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            if path.is_file():
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def staged(folder: Path) -> list[Path]:
    """Return the files that are being written, or wait."""
    return sorted((folder / ".collector").glob("*.part"))


def numbers(path: Path) -> list[int]:
    """Return the numbers of the frames in a file; it must be whole."""
    capture = open_capture(path)
    found = [number_of(b.octets(i)) for b, _ in capture.batches() for i in range(len(b))]
    assert capture.damage is None
    return found


def all_numbers(folder: Path) -> list[int]:
    return [number for path in files_in(folder) for number in numbers(path)]


def capinfos(*paths: Path) -> list[int]:
    """Return capinfos' packet counts; it must find the files whole."""
    done = subprocess.run(
        ["capinfos", "-c", "-M", "-T", "-r", *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(line.split("\t")[1]) for line in done.stdout.splitlines()]


def manifest(folder: Path) -> list[dict[str, Any]]:
    text = (folder / ".collector" / "manifest.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
