"""Tables of what a running ``tunnelbridge send`` tells about itself.

Plain text where nobody's terminal is; 80 columns are enough, unless numbers need more: words fold,
numbers never do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tunnelbridge.ledger import told

Entry = Mapping[str, Any]
STYLES: Final = {"up": "green", "down": "red", "drained": "yellow", "disabled": "yellow"}
LEAST_WIDTHS: Final = (15, 9)
"""Columns that folding names keep: the first, so that no IPv4 address folds, and others."""
LONGEST_NUMBER: Final = 20
"""Digits of 2**64."""
COUNTERS: Final = {
    "num_total_pkts_cloned": "num_total_\npkts_cloned",
    "num_mbuf_alloc_failed": "num_mbuf_\nalloc_failed",
    "num_driver_failures": "num_driver_\nfailures",
    "num_succeeded": "num_\nsucceeded",
}
"""NSX's names of a member's counters, and as headings that leave room for the numbers."""


def write_json(result: Any) -> None:
    """Write a result as JSON to standard output."""
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def write(what: str, result: Any, console: Console | None = None) -> None:
    """Write ``result``, an answer to ``show what``, to standard output or another console."""
    write_parts(RENDERERS[what](result), f"no {what}", console)


def write_parts(
    parts: Sequence[Text | Table], nothing: str, console: Console | None = None
) -> None:
    """Write tables and lines to standard output or another console; ``nothing`` if there are none."""
    console = console or Console(markup=False, highlight=False, emoji=False)
    width = console.width
    if not parts:
        console.print(nothing)
    for number, part in enumerate(parts):
        if number and not isinstance(parts[number - 1], Text):
            console.print()
        console.width = max(width, _fit(part, width))
        console.print(part)
    console.width = width


def _fit(part: Text | Table, width: int) -> int:
    """Fold a table's words until it fits ``width``, the widest column first; return its width."""
    if isinstance(part, Text):
        return width
    widths = [_natural_width(column) for column in part.columns]
    least = [
        natural if column.no_wrap else min(natural, column.min_width or 1)
        for column, natural in zip(part.columns, widths, strict=True)
    ]
    between = (len(widths) - 1) * (part.padding[1] + (part.box is not None))
    while sum(widths) + between > width and widths != least:
        shrinkable = [number for number, each in enumerate(widths) if each > least[number]]
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    for column, each in zip(part.columns, widths, strict=True):
        column.width = each
    return sum(widths) + between


def _natural_width(column: Column) -> int:
    cells = [str(cell) for cell in (column.header, *column.cells)]
    return max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)


def _sessions(entries: Sequence[Entry]) -> list[Table]:
    meant = table_of("#priority", "session", "sources", "target")
    counted = table_of("session", "interfaces", "#matched", "#octets", "#no member")
    for entry in entries:
        state = "enabled" if entry["enabled"] else "disabled"
        target = [entry["target"], f"filter {entry['filter']}" if entry["filter"] else "everything"]
        if entry["identifier"] not in (None, ""):
            target.append(f"identifier {entry['identifier']}")
        if entry["packet_length"] is not None:
            target.append(f"first {entry['packet_length']} octets")
        meant.add_row(
            str(entry["priority"]),
            lines(entry["name"], f"{entry['kind']}, {state}", _labels(entry), style=state),
            lines(*entry["sources"]),
            lines(*target),
        )
        counted.add_row(
            lines(entry["name"]),
            lines(*entry["attached"]),
            str(entry["matched"]),
            str(entry["octets"]),
            str(entry["no_member"]),
        )
    return [meant, counted] if entries else []


def _pools(entries: Sequence[Entry]) -> list[Text | Table]:
    parts: list[Text | Table] = []
    for pool in entries:
        about = f"pool {pool['name']}: {pool['distribution']}, rewrite {pool['rewrite']}"
        meant = table_of("member", "=state", "#weight", "=MAC address", "tunnels", "labels")
        counted = table_of("member", *(f"#{name}" for name in COUNTERS.values()))
        for member in pool["members"]:
            meant.add_row(
                lines(member["ip"]),
                lines(member["state"], style=member["state"]),
                str(member["weight"]),
                lines(member["mac"]),
                lines(*member["tunnels"]),
                lines(_labels(member)),
            )
            counted.add_row(lines(member["ip"]), *(str(member[name]) for name in COUNTERS))
        tables = [meant, counted] if pool["members"] else []
        parts += [Text(about if tables else f"{about}, no members", "bold"), *tables]
    return parts


def _arp(entries: Sequence[Entry]) -> list[Table]:
    table = table_of("member", "=MAC address", "pools")
    for entry in entries:
        table.add_row(lines(entry["ip"]), lines(entry["mac"]), lines(*entry["used_by"]))
    return [table] if entries else []


def _fdb(entries: Sequence[Entry]) -> list[Table]:
    table = table_of("=MAC address", "tunnels")
    for entry in entries:
        table.add_row(lines(entry["mac"]), lines(*entry["tunnels"]))
    return [table] if entries else []


def _tunnels(entries: Sequence[Entry]) -> list[Table]:
    meant = table_of("tunnel", "remote", "#identifier", "#path MTU", "#overhead", "#sequence")
    counted = table_of("tunnel", "#clones", "#sent", "#octets", "beside")
    for entry in entries:
        numbers = ("identifier", "path_mtu", "overhead", "sequence")
        meant.add_row(
            lines(entry["name"]),
            lines(entry["encapsulation"], entry["remote"]),
            *("-" if entry[name] is None else str(entry[name]) for name in numbers),
        )
        counted.add_row(
            lines(entry["name"]),
            *(str(entry[name]) for name in ("clones", "sent", "octets")),
            lines(*_beside(entry)),
        )
    return [meant, counted] if entries else []


def _beside(tunnel: Entry) -> list[str]:
    """Return what befell a tunnel's clones, as far as something did."""
    causes = [f"{name} {told(tunnel[name])}" for name in ("errors", "refused") if tunnel[name]]
    names = ("queue_dropped", "truncated", "fragmented", "unreachable")
    counts = [f"{name.replace('_', ' ')} {tunnel[name]}" for name in names if tunnel[name]]
    return causes + counts


def _stats(result: Entry) -> list[Text | Table]:
    """Counters of everything, of sources, and of members by session, as NSX names them."""
    parts: list[Text | Table] = [
        Text(f"counted since {result['since']} (epoch {result['stats_epoch']})", "bold"),
        fields(result["ledger"].items()),
    ]
    if result["sources"]:
        columns = ("received", "kernel_dropped", "octets")
        table = table_of("source", "=state", *(f"#{name.replace('_', ' ')}" for name in columns))
        for source in result["sources"]:
            table.add_row(
                lines(source["name"]),
                lines(source["state"]),
                *(str(source[name]) for name in columns),
            )
        parts.append(table)
    for session in result["traffic_clone_stats"]:
        parts += [Text(f"session {session['session']}", "bold"), fields(_nsx(session))]
    return parts


def _nsx(session: Entry) -> Iterable[tuple[str, Any]]:
    """Return the fields of ``show virtualservice NAME traffic_clone_stats``, in their order."""
    yield "se_uuid", session["se_uuid"]
    yield "proc_id", session["proc_id"]
    for number, member in enumerate(session["clone_srvr_stats"], 1):
        yield f"clone_srvr_stats[{number}]", ""
        for name in ("ip", *COUNTERS):
            yield f"  {name}", member[name]


RENDERERS: Final[Mapping[str, Callable[[Any], Sequence[Text | Table]]]] = {
    "sessions": _sessions,
    "pools": _pools,
    "arp": _arp,
    "fdb": _fdb,
    "tunnels": _tunnels,
    "stats": _stats,
}


def table_of(*columns: str) -> Table:
    """Return an empty table; # begins the heading of a column of numbers, = of words never folded."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        if column.startswith(("#", "=")):
            table.add_column(
                column[1:], justify="right" if column[0] == "#" else "left", no_wrap=True
            )
        else:
            least = LEAST_WIDTHS[bool(table.columns)]
            table.add_column(column, overflow="fold", min_width=least)
    return table


def fields(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Return a table of names and values; lists are left out, they have tables of their own."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", min_width=LONGEST_NUMBER)
    for name, value in pairs:
        if isinstance(value, Mapping):
            table.add_row(name, Text(told(value) or "none"))
        elif not isinstance(value, list):
            table.add_row(name, Text(str(value)))
    return table


def lines(*texts: str | None, style: str = "") -> Text:
    """Return the lines of a cell; what is empty is left out, and the first carries the style."""
    first, *others = [text for text in texts if text] or ["-"]
    return Text("\n").join([Text(first, STYLES.get(style, "")), *map(Text, others)])


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _labels(entry: Entry) -> str:
    return _names(f"{name}={value}" for name, value in entry["labels"].items())
