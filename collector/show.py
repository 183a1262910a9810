"""Tables of what a running collector tells about itself, and of a joint ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunnelbridge.console import rate
from tunnelbridge.ledger import told
from tunnelbridge.show import Entry, fields, lines, table_of, write_parts

BESIDE: Final = ("reordered", "duplicate", "truncated", "restarts")


def write(what: str, result: Any, console: Console | None = None) -> None:
    """Write ``result``, an answer to ``show what``, to standard output or another console."""
    write_parts(RENDERERS[what](result), f"no {what}", console)


def _streams(result: Entry) -> list[Text | Table]:
    seen = table_of("stream", "=first seen", "=last seen", "=rate")
    counted = table_of("stream", "#packets", "#octets", "#lost", "beside")
    for each in result["streams"]:
        name = lines(f"{each['encapsulation']} {_number(each)}".strip(), each["source"])
        seen.add_row(
            name,
            _when(each["first_seen"]),
            _when(each["last_seen"]),
            lines(
                rate(each["packets_per_second"], "packets/s"),
                rate(each["bits_per_second"], "bit/s"),
            ),
        )
        counts = [f"{count} {each[count]}" for count in BESIDE if each[count]]
        counted.add_row(
            name,
            str(each["packets"]),
            str(each["octets"]),
            _bad(each["lost"]),
            lines(*counts),
        )
    parts: list[Text | Table] = [seen, counted] if result["streams"] else []
    if result["more"]:
        parts.append(Text(f"… and {result['more']} more streams"))
    return parts


def _sinks(entries: Sequence[Entry]) -> list[Text | Table]:
    table = table_of("sink", "#delivered", "#octets", "#queued", "#filtered", "dropped")
    for each in entries:
        numbers = ("delivered", "octets", "queued", "filtered")
        table.add_row(
            lines(each["name"]),
            *(str(each[name]) for name in numbers),
            Text(told(each["dropped"]) or "-", "red" if any(each["dropped"].values()) else ""),
        )
    return [table] if entries else []


def _refused(entries: Sequence[Entry]) -> list[Text | Table]:
    table = table_of("source", "encapsulation", "reason", "#packets", "=last seen")
    for each in entries:
        table.add_row(
            lines(each["source"]),
            lines(each["encapsulation"]),
            lines(each["reason"]),
            str(each["packets"]),
            _when(each["last_seen"]),
        )
    return [table] if entries else []


def _health(report: Entry) -> list[Text | Table]:
    return [*health_findings(report), _health_numbers(report)]


def health_findings(report: Entry) -> list[Text]:
    """Return what is wrong, and what may be, a line each; a report of nothing says so."""
    if not report["frames"]:
        return [Text("nothing came yet")]
    told = [Text(f"! {finding}", "red") for finding in report["findings"]]
    told += [Text(remark) for remark in report.get("remarks", ())]
    return told or [Text("nothing wrong with the mirror was seen", "green")]


def _health_numbers(report: Entry) -> Table:
    """Return all numbers, with the share of the whole that each is part of."""
    looked_at = "all" if report["sample"] == 1 else f"1 of {report['sample']}"
    pairs: list[tuple[str, str]] = [
        ("frames", str(report["frames"])),
        ("truncated", _share(report, "truncated", "frames")),
        ("lost, by sequence", str(report["lost"])),
        ("looked at", f"{looked_at} flows, {report['sampled_frames']} frames"),
        ("flows", str(report["flows"])),
        ("in one direction only", _share(report, "one_direction", "flows")),
        ("TCP flows", str(report["tcp_flows"])),
        ("TCP in one direction only", _share(report, "tcp_one_direction", "tcp_flows")),
        ("TCP without SYN", _share(report, "tcp_without_syn", "tcp_flows")),
        ("TCP octets", str(report["tcp_octets"])),
        ("acknowledged, not seen", _share(report, "acked_unseen_octets", "tcp_octets")),
        ("bad checksums", _share(report, "bad_checksums", "checked_checksums")),
        ("suspected duplicates", _share(report, "suspected_duplicates", "sampled_frames")),
    ]  # fmt: skip
    return fields(pairs)


def _stats(result: Entry) -> list[Text | Table]:
    return [fields(result["ledger"].items()), *_sinks(result["ledger"]["sinks"])]


RENDERERS: Final[Mapping[str, Callable[[Any], Sequence[Text | Table]]]] = {
    "streams": _streams,
    "sinks": _sinks,
    "refused": _refused,
    "health": _health,
    "stats": _stats,
}


def write_joint(joint: Entry, console: Console | None = None) -> None:
    """Write a joint ledger (:mod:`collector.reconcile`) hop by hop."""
    table = table_of("where", "#came", "#went on", "what became of the others", "#unexplained")
    for hop in joint["hops"]:
        causes = [f"{cause} {count}" for cause, count in hop["causes"].items() if count]
        if not hop["is_exact"] and causes:
            causes = [f"at most {cause}" for cause in causes]
        table.add_row(
            lines(hop["name"]),
            str(hop["came"]),
            str(hop["went"]),
            lines(*causes),
            _bad(hop["unexplained"]),
        )
    verdict = (
        Text("every packet is accounted for", "green")
        if joint["explained"]
        else Text("NOT every packet is accounted for", "red")
    )
    write_parts([table, *map(Text, joint["remarks"]), verdict], "", console)


def _number(stream: Entry) -> str:
    return "" if stream["identifier"] is None else str(stream["identifier"])


def _when(time: int) -> str:
    """Return nanoseconds since the epoch as date and time, UTC."""
    return datetime.fromtimestamp(time / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if time else "-"


def _bad(count: int) -> Text:
    return Text(str(count), "red" if count else "")


def _share(report: Entry, part: str, whole: str) -> str:
    if not report[whole]:
        return str(report[part])
    return f"{report[part]} ({report[part] / report[whole]:.1%} of {report[whole]})"
