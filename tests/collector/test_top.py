"""Rates of two looks, histories, and tables that fit 80 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from collector import top as collector_top
from tunnelbridge import top
from tunnelbridge.errors import UserError
from tunnelbridge.ledger import (
    MemberLedger,
    SenderLedger,
    SessionLedger,
    SourceLedger,
    TunnelLedger,
)
from tunnelbridge.top import Looks, Row, Section, render, run, sparkline


def section(*rows: Row, kind: str = "stream") -> Section:
    return Section(kind, rows)


def text(sections: list[Section], looks: Looks, width: int = 80, colour: bool = False) -> str:
    out = io.StringIO()
    system = "standard" if colour else None
    console = Console(file=out, width=width, force_terminal=colour, color_system=system)
    console.print(render("title", sections, looks))
    return out.getvalue()


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""), ([0, 0], "  "), ([5], "█"), ([0, 1, 2, 4, 8], " ▂▃▅█"), ([0.1, 100], "▁█"),
        (list(range(1, 9)), "▁▂▃▅▅▆▇█"),
    ],
)  # fmt: skip
def test_sparklines(values: list[float], bars: str) -> None:
    found = sparkline(values)
    assert len(found) == len(values)
    assert [char == " " for char in found] == [value == 0 for value in values]
    heights = [" ▁▂▃▄▅▆▇█".index(char) for char in found]
    assert heights == sorted(heights)
    if any(values):
        assert found[-1] == "█"
    if len(values) < 6:
        assert found == bars


def test_rates_are_of_the_time_between_two_looks() -> None:
    looks = Looks()
    first, then = section(Row("a", 100, 1000)), section(Row("a", 300, 2000, bad=4))
    looks.take([first], 10.0)
    assert looks.of(first, first.rows[0]).packets == 0
    looks.take([then], 12.0)
    rates = looks.of(then, then.rows[0])
    assert (rates.packets, rates.bits, rates.bad) == (100.0, 4000.0, 4)
    assert list(rates.history) == [100.0]


def test_new_and_vanished_and_restarted_lines() -> None:
    looks = Looks()
    looks.take([section(Row("a", 5, 5), Row("b", 5, 5))], 1.0)
    now = section(Row("b", 2, 1), Row("c", 9, 9))
    looks.take([now], 2.0)
    b, c = (looks.of(now, row) for row in now.rows)
    assert (b.packets, b.bits) == (2.0, 8.0)  # from zero: it started anew
    assert c.packets == 0  # nobody knows since when
    back = section(Row("a", 50, 50))
    looks.take([back], 3.0)
    assert looks.of(back, back.rows[0]).packets == 0


def test_lines_of_the_same_name_in_two_sections_are_apart() -> None:
    looks = Looks()
    for packets, now in ((0, 1.0), (10, 2.0)):
        sections = [section(Row("x", packets, 0)), section(Row("x", 2 * packets, 0), kind="sink")]
        looks.take(sections, now)
    assert [looks.of(each, each.rows[0]).packets for each in sections] == [10.0, 20.0]


def test_the_busiest_come_first_and_the_rest_is_counted() -> None:
    looks = Looks()
    for scale, now in ((0, 1.0), (1, 2.0)):
        rows = [Row(f"stream{number}", number * scale * 1000, 0) for number in range(30)]
        looks.take([section(*rows)], now)
    lines = text([section(*rows)], looks).splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["stream29", "stream28", "stream27"]
    assert lines[-1] == "… and 10 more"


def test_80_columns_hold_the_worst_line() -> None:
    name = "geneve 2001:db8:1234:5678:9abc:def0:1234:5678 vni 16777215"
    beside = "reordered 123456789, duplicate 123456789, truncated 12345678"
    looks = Looks()
    for packets, now in ((0, 1.0), (999_400, 2.0)):
        row = Row(name, packets, packets * 9000, 99_999_999, beside)
        looks.take([section(row)], now)
    lines = text([section(row)], looks).splitlines()
    assert max(map(len, lines)) <= 80
    assert "999 k" in lines[3]
    assert "72 G" in lines[3]
    assert "99999999" in lines[3]


def test_losses_are_coloured_by_whether_they_go_on() -> None:
    looks = Looks()
    quiet, before, now = Row("q", 1, 1), Row("b", 1, 1, 7), Row("n", 1, 1, 7)
    looks.take([section(quiet, before, now)], 1.0)
    now = Row("n", 1, 1, 8)
    looks.take([section(quiet, before, now)], 2.0)
    found = text([section(quiet, before, now)], looks, colour=True)
    assert re.search(r"\x1b\[33m +7", found)  # yellow
    assert re.search(r"\x1b\[1;31m +8", found)  # red
    assert found.count("\x1b[33m") == found.count("\x1b[1;31m") == 1


def test_nothing_to_show() -> None:
    looks = Looks()
    looks.take([section()], 1.0)
    assert "no streams" in text([section()], looks)


def test_once_takes_two_looks() -> None:
    asked = iter([[section(Row("a", 0, 0))], [section(Row("a", 50, 0))]])
    out = io.StringIO()
    run("title", lambda: next(asked), 0.01, True, Console(file=out, width=80))
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("a ")]
    assert line.split()[1] != "0"
    assert next(asked, None) is None


def test_a_program_that_ends_is_told_after_a_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Callable[[], list[Section]]] = [lambda: [section(Row("a", 1, 1))]] * 3

    def ask() -> list[Section]:
        if answers:
            return answers.pop()()
        raise UserError("nobody there")

    slept: list[float] = []
    monkeypatch.setattr(top.time, "sleep", slept.append)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(UserError, match="nobody there"):
        run("title", ask, 0.5, console=console)
    assert slept == [0.5] * (3 + top.PATIENCE - 1)


def test_a_sender() -> None:
    member = MemberLedger("10.0.0.9", 10, 1, 2, 7, 700)
    tunnel = TunnelLedger("dc2", clones=10, sent=6, octets=600, queue_dropped=1, truncated=5)
    tunnel.errors["no-route"] = 3
    ledger = SenderLedger(
        sessions=[SessionLedger("s1", members=[member])],
        tunnels=[tunnel],
        sources=[SourceLedger("eth0", 11, 2, 1100)],
    )
    sections = top.sender_sections({"ledger": ledger.as_dict()})
    rows = {each.kind: each.rows for each in sections}
    assert rows == {
        "source": [Row("eth0", 11, 1100, 2)],
        "member": [Row("10.0.0.9 (s1)", 7, 700, 3)],
        "tunnel": [Row("dc2", 6, 600, 4, "truncated 5")],
    }


def test_a_collector() -> None:
    stream: dict[str, Any] = {"name": "vxlan 192.0.2.1 vni 7", "packets": 9, "octets": 900, "lost": 1,
                              "reordered": 2, "duplicate": 0, "truncated": 3}  # fmt: skip
    sink = {"name": "tap t", "delivered": 8, "octets": 800, "queued": 4, "dropped": {"full": 1}}
    totals = {"received": 12, "socket_dropped": 5, "reassembly_failed": 6, "rejected": {"x": 3}}
    answers: dict[str, Any] = {"streams": {"streams": [stream]}, "sinks": [sink], "totals": totals}
    rows = {each.kind: each.rows for each in collector_top.sections(answers.__getitem__)}
    assert rows == {
        "collector": [Row("received", 12, 900, 11, "refused 3")],
        "stream": [Row("vxlan 192.0.2.1 vni 7", 9, 900, 1, "reordered 2, truncated 3")],
        "sink": [Row("tap t", 8, 800, 1, "queued 4")],
    }
