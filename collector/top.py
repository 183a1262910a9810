"""What ``collector top`` shows: streams by rate, and the sinks with their queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tunnelbridge.top import Row, Section

_BESIDE: Final = ("reordered", "duplicate", "truncated")


def sections(ask: Callable[[str], Any]) -> list[Section]:
    """Return the lines of now; ``ask`` gets an answer to ``show WHAT``."""
    streams = [
        Row(
            each["name"],
            each["packets"],
            each["octets"],
            each["lost"],
            ", ".join(f"{name} {each[name]}" for name in _BESIDE if each[name]),
        )
        for each in ask("streams")["streams"]
    ]
    sinks = [
        Row(
            each["name"],
            each["delivered"],
            each["octets"],
            sum(each["dropped"].values()),
            f"queued {each['queued']}" if each["queued"] else "",
        )
        for each in ask("sinks")
    ]
    totals = ask("totals")
    whole = Row(
        "received",
        totals["received"],
        sum(row.octets for row in streams),
        totals["socket_dropped"] + totals["reassembly_failed"],
        f"refused {sum(totals['rejected'].values())}" if any(totals["rejected"].values()) else "",
    )
    return [
        Section("collector", [whole], "dropped"),
        Section("stream", streams),
        Section("sink", sinks, "dropped"),
    ]
