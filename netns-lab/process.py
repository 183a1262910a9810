"""Programs that run in the lab: started, listened to, ended by their id."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class LabError(Exception):
    """The lab could not be built, or a program in it did not do its part; one line says what."""


def wait_until(condition: Callable[[], T], seconds: float, what: str, every: float = 0.005) -> T:
    """Return the first true value of ``condition``; LabError when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(every)
    return value


class Process:
    """A program that runs in the lab, in its folder; what it prints goes to two files there."""

    def __init__(self, name: str, argv: Sequence[str], folder: Path) -> None:
        self.name = name
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            # a session of its own: Ctrl-C is the lab's business, which ends it in good order
            self.popen = subprocess.Popen(
                argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    def said(self, text: str) -> bool:
        """Tell whether ``text`` stands in what it printed; LabError if it has ended without."""
        ended = self.popen.poll()  # asked first: what it said last is in the files by now
        if text in self.out.read_text(errors="replace") + self.err.read_text(errors="replace"):
            return True
        if ended is not None:
            self.running()
        return False

    def running(self) -> bool:
        """Return True; LabError with its last words if it has ended."""
        if (code := self.popen.poll()) is not None:
            raise LabError(f"{self.name} ended with exit code {code}: {self.last_words()}")
        return True

    def last_words(self) -> str:
        """Return the last line of what it printed."""
        lines = (self.out.read_text(errors="replace") + self.err.read_text(errors="replace")).split(
            "\n"
        )
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def stop(self, how: signal.Signals = signal.SIGINT, seconds: float = 5.0) -> int:
        """Send a signal and return the exit code; kill it and raise LabError if it goes on."""
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        """Return the exit code; kill it and raise LabError when it does not end in time."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise LabError(f"{self.name} did not end within {seconds:g} s and was killed") from None
