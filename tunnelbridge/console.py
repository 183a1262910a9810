"""What people and log collectors see on standard error.

A terminal gets prose and one line of live rates; a pipe gets structlog's JSON lines. Nothing is
logged per packet.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from tunnelbridge.errors import UserError
from tunnelbridge.ledger import as_json, told

ALWAYS_TOLD: Final = ("received", "cloned", "decapsulated", "sent", "delivered", "packets", "lost")
NEVER_TOLD: Final = ("first_seen", "last_seen", "sequence_first", "sequence_next", "outer")
"""For programs: nanoseconds since the epoch, numbers to reconcile by."""
MOST_LINES: Final = 20
ERASE: Final = "\r\x1b[2K"


def configure_logging(verbose: bool, quiet: bool = False) -> structlog.stdlib.BoundLogger:
    """Send log lines to standard error: readable on a terminal, JSON elsewhere.

    ``quiet`` leaves nothing but errors.
    """
    render: Any = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        render = structlog.dev.ConsoleRenderer(pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(40 if quiet else 10 if verbose else 20),
        logger_factory=structlog.PrintLoggerFactory(_Lenient(sys.stderr)),  # type: ignore[arg-type]
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


class _Lenient:
    """A stream that nobody may be reading any more: losing log lines must not lose packets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(LiveLine.erase() + text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class LiveLine:
    """One line on a terminal that is written over each second; nothing elsewhere."""

    _shown = False

    def __init__(self) -> None:
        self.active = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self.active:
            sys.stderr.write(f"{ERASE}{text}")
            sys.stderr.flush()
            LiveLine._shown = bool(text)

    def clear(self) -> None:
        """Take the line away, before something else is written."""
        self.show("")

    @classmethod
    def erase(cls) -> str:
        """Return what takes the line away, for whoever writes next; nothing if there is none."""
        shown, cls._shown = cls._shown, False
        return ERASE if shown else ""


def rate(count: float, unit: str) -> str:
    """Return a number in words: ``1.2 Mbit/s``, ``340 kpackets/s``."""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit * 0.9995:  # what three digits round up to
            return f"{count / limit:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def report(ledger: Mapping[str, Any], reason: str) -> None:
    """Write the closing ledger to standard error: lines for people, or JSON log lines."""
    lists = {name: value for name, value in ledger.items() if isinstance(value, list)}
    for each in ("sessions", "sources"):  # the only one has the numbers of the whole
        if len(lists.get(each, ())) == 1:
            del lists[each]
    totals = {name: value for name, value in ledger.items() if not isinstance(value, list)}
    if not sys.stderr.isatty():
        logger = structlog.get_logger()
        logger.info("done", reason=reason, **totals)
        for name, entries in lists.items():
            for entry in entries[:MOST_LINES]:
                logger.info(name.removesuffix("s"), **entry)
            if len(entries) > MOST_LINES:
                logger.info(f"more {name}", more=len(entries) - MOST_LINES)
        return
    print(f"{totals.pop('program')}: ended by {reason}", file=sys.stderr)
    balanced = totals.pop("balanced")
    print("  " + _in_words(totals), file=sys.stderr)
    for name, entries in lists.items():
        for entry in entries[:MOST_LINES]:
            print(f"  {name.removesuffix('s')} {_in_words(entry)}", file=sys.stderr)
        if len(entries) > MOST_LINES:
            print(f"  … and {len(entries) - MOST_LINES} more {name}", file=sys.stderr)
    if not balanced:
        print("  THE SUMS DO NOT BALANCE: please report this", file=sys.stderr)


def _in_words(entry: Mapping[str, Any]) -> str:
    """Return ``name: received 4, sent 4``, leaving out what did not happen."""
    texts = [str(value) for value in entry.values() if isinstance(value, str)]
    counts = {
        name: value
        for name, value in entry.items()
        if not isinstance(value, str | list) and name not in NEVER_TOLD
    }
    words: list[str] = []
    for name, value in counts.items():
        if isinstance(value, Mapping):
            words += [f"{name} {told(value)}"] if value else []
        elif value or name in ALWAYS_TOLD:
            words.append(f"{name.replace('_', ' ')} {value}")
    return ": ".join([" ".join(texts), ", ".join(words)] if texts else [", ".join(words)])


def write_snapshot(destination: str | None, ledger: Mapping[str, Any]) -> None:
    """Write the ledger of a program that runs on; without a file to standard error.

    Standard output may be somebody's pcap.
    """
    if destination is None:
        sys.stderr.write(as_json(ledger))
        sys.stderr.flush()
    else:
        write_stats(destination, ledger)


def write_stats(destination: str | None, ledger: Mapping[str, Any]) -> None:
    """Write the ledger as JSON to a file, or to standard output for ``-``."""
    if destination is None:
        return
    text = as_json(ledger)
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(destination)
    partial = path.with_name(path.name + ".part")
    try:
        if path.exists() and not path.is_file():  # a FIFO or /dev/stderr
            path.write_text(text)
            return
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror}") from None


def check_writable(destination: str | None) -> None:
    """Refuse a ledger file that cannot be written before anything starts."""
    if destination in (None, "-"):
        return
    path = Path(str(destination))
    replaced = path.is_file() or not path.exists()
    if path.is_dir():
        problem = "is a directory"
    elif not path.parent.is_dir():
        problem = "no such directory"
    elif not os.access(path.parent if replaced else path, os.W_OK):
        problem = "permission denied"
    else:
        return
    raise UserError(f"cannot write {destination}: {problem}")


@contextlib.contextmanager
def progress(total: int, label: str) -> Iterator[Any]:
    """Show a progress bar on a terminal; yields a function of the octets done so far."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
