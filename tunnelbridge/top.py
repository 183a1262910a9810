"""``top``: what a running program does now, over its control socket; for both programs.

A program's counters only grow; rates are made here, of two looks, with a short history of each.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunnelbridge.console import rate
from tunnelbridge.errors import UserError

BARS: Final = "▁▂▃▄▅▆▇█"
HISTORY: Final = 10
MOST_ROWS: Final = 20
NUMBERS: Final = 2 * 9 + HISTORY + 5
"""Columns that rates, histories and the space between take."""
LEAST_WORDS: Final = 10
PATIENCE: Final = 3
"""Looks in a row that may fail before it ends."""


@dataclass(slots=True)
class Row:
    """One line: counters that only grow, and what else is to be told."""

    name: str
    packets: int
    octets: int
    bad: int = 0
    """Packets lost or dropped."""
    beside: str = ""


@dataclass(slots=True)
class Section:
    """Lines of one kind, under a heading that names them: ``stream``, ``sink``."""

    kind: str
    rows: Sequence[Row]
    bad: str = "lost"


@dataclass(slots=True)
class Rates:
    """What a line did since the last look."""

    packets: float = 0.0
    bits: float = 0.0
    bad: int = 0
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))


class Looks:
    """Makes rates of one look after another; forgets lines that are not there any more."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], tuple[float, Row]] = {}
        self._rates: dict[tuple[str, str], Rates] = {}

    def take(self, sections: Sequence[Section], now: float) -> None:
        """Take a look at ``now``, in seconds of any clock that only goes forward."""
        rates: dict[tuple[str, str], Rates] = {}
        for section in sections:
            for row in section.rows:
                key = section.kind, row.name
                then, before = self._before.get(key, (now, row))
                rates[key] = self._rates.get(key, Rates())
                seconds = now - then
                if seconds > 0:
                    _advance(rates[key], before, row, seconds)
                self._before[key] = now, row
        self._rates = rates
        self._before = {key: self._before[key] for key in rates}

    def of(self, section: Section, row: Row) -> Rates:
        """Return the rates of a line at the last look."""
        return self._rates[section.kind, row.name]


def _advance(rates: Rates, before: Row, row: Row, seconds: float) -> None:
    """Make rates; a counter that went back is of a program that started anew, from zero."""
    restarted = row.packets < before.packets
    rates.packets = (row.packets - (0 if restarted else before.packets)) / seconds
    rates.bits = (row.octets - (0 if restarted else before.octets)) * 8 / seconds
    rates.bad = max(row.bad - (0 if restarted else before.bad), 0)
    rates.history.append(rates.packets)


def sparkline(values: Sequence[float]) -> str:
    """Return a bar for each value, the highest of them full; blanks for zeros."""
    highest = max(values, default=0)
    if highest <= 0:
        return " " * len(values)
    top = len(BARS) - 1
    return "".join(BARS[round(value / highest * top)] if value > 0 else " " for value in values)


def render(title: str, sections: Sequence[Section], looks: Looks, width: int = 80) -> Group:
    """Return everything as it stands on a screen of ``width`` columns; 80 are enough."""
    parts: list[Any] = [Text(title, "bold")]
    for section in sections:
        rows = sorted(section.rows, key=lambda row: -looks.of(section, row).packets)
        parts += ["", _table(section, rows[:MOST_ROWS], looks, width)]
        if len(rows) > MOST_ROWS:
            parts.append(f"… and {len(rows) - MOST_ROWS} more")
        if not rows:
            parts.append(f"no {section.kind}s")
    return Group(*parts)


def _table(section: Section, rows: Sequence[Row], looks: Looks, width: int) -> Table:
    """Return a table in which words give way to numbers, and what is told beside to names."""
    widest = max((len(str(row.bad)) for row in rows), default=0)
    words = max(width - NUMBERS - max(widest, len(section.bad)), 2 * LEAST_WORDS)
    name = min(max((len(row.name) for row in rows), default=0), words)
    beside = min(max((len(row.beside) for row in rows), default=0), max(words - name, words // 3))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="underline")
    table.add_column(section.kind, overflow="ellipsis", no_wrap=True, width=words - beside)
    for heading in ("packets/s", "bit/s"):
        table.add_column(heading, justify="right", no_wrap=True, width=9)
    table.add_column("", no_wrap=True, width=HISTORY, style="cyan")
    table.add_column(section.bad, justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True, width=beside)
    for row in rows:
        rates = looks.of(section, row)
        # red while it goes on, yellow for what happened before
        style = "bold red" if rates.bad else "yellow" if row.bad else ""
        table.add_row(
            row.name,
            rate(rates.packets, "").rstrip(),
            rate(rates.bits, "").rstrip(),
            sparkline(rates.history),
            Text(str(row.bad), style),
            row.beside,
        )
    return table


def run(
    title: str,
    ask: Callable[[], Sequence[Section]],
    interval: float,
    once: bool = False,
    console: Console | None = None,
) -> None:
    """Show what ``ask`` tells until interrupted, or once after two looks; raises UserError."""
    console = console or Console(markup=False, highlight=False, emoji=False)
    looks = Looks()
    looks.take(ask(), time.monotonic())
    time.sleep(interval)
    if once or not console.is_terminal:
        sections = ask()
        looks.take(sections, time.monotonic())
        console.print(render(title, sections, looks, console.width))
        return
    failures = 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                sections, failures = ask(), 0
            except UserError:
                failures += 1
                if failures >= PATIENCE:
                    raise
            else:
                looks.take(sections, time.monotonic())
                live.update(render(title, sections, looks, console.width), refresh=True)
            time.sleep(interval)


def sender_sections(result: Any) -> list[Section]:
    """Return what ``show stats`` of ``tunnelbridge send`` tells, as sections."""
    ledger = result["ledger"]
    sources = [
        Row(each["name"], each["received"], each["octets"], each["kernel_dropped"])
        for each in ledger["sources"]
    ]
    members = [
        Row(
            f"{member['ip']} ({session['name']})",
            member["num_succeeded"],
            member["octets"],
            member["num_mbuf_alloc_failed"] + member["num_driver_failures"],
        )
        for session in ledger["sessions"]
        for member in session["members"]
    ]
    tunnels = [
        Row(
            each["name"],
            each["sent"],
            each["octets"],
            each["queue_dropped"] + sum(each["errors"].values()),
            ", ".join(f"{name} {each[name]}" for name in ("truncated", "fragmented") if each[name]),
        )
        for each in ledger["tunnels"]
    ]
    return [
        Section("source", sources, "dropped"),
        Section("member", members, "failed"),
        Section("tunnel", tunnels, "failed"),
    ]
