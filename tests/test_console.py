"""What people and log collectors see: rates in words, JSON lines, the closing ledger, its file."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tunnelbridge import console
from tunnelbridge.errors import UserError

LEDGER = {
    "program": "tunnelbridge send",
    "received": 30,
    "kernel_dropped": 0,
    "refused": {"own-tunnel": 3, "frame-short": 1},
    "cloned": 26,
    "tunnels": [
        {"name": "gre://a", "sent": 20, "errors": {"no-route": 6}, "truncated": 0},
        {"name": "gre://b", "sent": 0, "errors": {}, "truncated": 2},
    ],
    "balanced": True,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bit/s"),
        (12, "12 bit/s"),
        (999, "999 bit/s"),
        (1000, "1 kbit/s"),
        (340_200, "340 kbit/s"),
        (999_499, "999 kbit/s"),
        (999_999, "1 Mbit/s"),
        (1_234_567, "1.23 Mbit/s"),
        (999_999_999, "1 Gbit/s"),
        (43.7e9, "43.7 Gbit/s"),
    ],
)
def test_rates_in_words(count: float, words: str) -> None:
    assert console.rate(count, "bit/s") == words


@given(st.floats(0, 9.99e11))
def test_rates_are_right_to_three_digits(count: float) -> None:
    number, unit = console.rate(count, "x").split(" ")
    assert "e" not in number
    factor = {"x": 1, "kx": 1e3, "Mx": 1e6, "Gx": 1e9}[unit]
    assert float(number) * factor == pytest.approx(count, rel=0.005, abs=0.5)
    assert float(number) <= 999.5 or unit == "Gx" or count < 1000


def test_a_pipe_gets_json() -> None:
    with redirect_stderr(io.StringIO()) as pipe:
        log = console.configure_logging(verbose=False)
        log.info("interface is back", interface="eth0")
        log.debug("not said")

    (line,) = map(json.loads, pipe.getvalue().splitlines())
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "interface is back", "interface": "eth0", "level": "info"}


def test_a_terminal_gets_prose() -> None:
    with redirect_stderr(Terminal()) as terminal:
        log = console.configure_logging(verbose=True)
        log.warning("interface is gone", interface="eth0")
        log.debug("said")

    first, second = terminal.getvalue().splitlines()
    assert "interface is gone" in first
    assert "eth0" in first
    assert not first.startswith("{")
    assert "said" in second


def test_the_live_line_is_for_terminals() -> None:
    with redirect_stderr(Terminal()) as terminal:
        line = console.LiveLine()
        line.show("12 packets/s")
        line.show("7 packets/s")
        line.clear()

    assert terminal.getvalue() == "\r\x1b[2K12 packets/s\r\x1b[2K7 packets/s\r\x1b[2K"


def test_a_pipe_gets_no_live_line_and_no_bar() -> None:
    with redirect_stderr(io.StringIO()) as pipe:
        line = console.LiveLine()
        line.show("12 packets/s")
        line.clear()
        with console.progress(100, "x.pcap") as advance:
            advance(50)

    assert pipe.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    with redirect_stderr(Terminal()) as terminal, console.progress(100, "x.pcap") as advance:
        advance(50)
        advance(100)

    assert "x.pcap" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_the_closing_ledger_as_json() -> None:
    with redirect_stderr(io.StringIO()) as pipe:
        console.configure_logging(verbose=False)
        console.report(LEDGER, "SIGINT")

    done, first, second = map(json.loads, pipe.getvalue().splitlines())
    assert done["event"] == "done"
    assert done["reason"] == "SIGINT"
    assert done["refused"] == {"own-tunnel": 3, "frame-short": 1}
    assert done["balanced"] is True
    assert [first["event"], second["event"]] == ["tunnel", "tunnel"]
    assert {key: first[key] for key in LEDGER["tunnels"][0]} == LEDGER["tunnels"][0]
    assert second["name"] == "gre://b"


def test_times_are_for_programs_and_none_is_no_word() -> None:
    entry = {"source": "192.0.2.1", "encapsulation": None, "packets": 2, "first_seen": 5}
    assert console._in_words(entry) == "192.0.2.1: packets 2"


def test_the_closing_ledger_in_words() -> None:
    with redirect_stderr(Terminal()) as terminal:
        console.report(LEDGER, "SIGINT")

    assert terminal.getvalue().splitlines() == [
        "tunnelbridge send: ended by SIGINT",
        "  received 30, refused own-tunnel 3, frame-short 1, cloned 26",
        "  tunnel gre://a: sent 20, errors no-route 6",
        "  tunnel gre://b: sent 0, truncated 2",
    ]


def test_many_streams_are_summed_up_and_an_imbalance_is_loud() -> None:
    with redirect_stderr(Terminal()) as terminal:
        streams = [{"source": f"192.0.2.{number}", "packets": number} for number in range(25)]
        console.report(
            {"program": "x", "received": 1, "streams": streams, "balanced": False}, "count"
        )

    lines = terminal.getvalue().splitlines()
    assert lines[2] == "  stream 192.0.2.0: packets 0"
    assert lines[-2] == "  … and 5 more streams"
    assert "DO NOT BALANCE" in lines[-1]
    assert len(lines) == 2 + 20 + 2


def test_stats_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    console.check_writable("-")
    console.check_writable(None)
    console.write_stats(None, LEDGER)
    assert capsys.readouterr().out == ""
    console.write_stats("-", LEDGER)
    assert json.loads(capsys.readouterr().out) == LEDGER


def test_stats_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text("before")
    reader = path.open()
    os.link(path, tmp_path / "other-name")

    console.check_writable(str(path))
    console.write_stats(str(path), LEDGER)

    with reader:
        assert reader.read() == "before"  # who reads meanwhile sees no half of the new one
    assert (tmp_path / "other-name").read_text() == "before"
    assert json.loads(path.read_text()) == LEDGER
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other-name", "stats.json"]


def test_stats_into_a_pipe_are_not_a_file_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        console.check_writable(str(path))
        console.write_stats(str(path), LEDGER)
        assert json.loads(os.read(reader, 65536)) == LEDGER
        assert path.is_fifo()
    finally:
        os.close(reader)


def test_stats_that_cannot_be_written(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "is a directory"), (tmp_path / "no" / "x", "no such directory")):
        with pytest.raises(UserError, match=f"^cannot write {path}: {why}$") as told:
            console.check_writable(str(path))
        assert told.value.status == 1
        with pytest.raises(UserError, match=f"^cannot write {path}: "):
            console.write_stats(str(path), LEDGER)
    with contextlib.suppress(FileNotFoundError):
        full = Path("/dev/full")
        full.stat()
        with pytest.raises(UserError, match=r"^cannot write /dev/full: No space left on device$"):
            console.write_stats(str(full), LEDGER)


def test_a_folder_without_the_right_to_write_is_told_beforehand(tmp_path: Path, root: None) -> None:
    told: list[str] = []
    paths = [tmp_path / "stats.json", Path("/dev/null")]

    def work() -> None:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
        assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
        for path in paths:
            try:
                console.check_writable(str(path))
            except UserError as error:
                told.append(str(error))

    tmp_path.chmod(0o555)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert told == [f"cannot write {paths[0]}: permission denied"]


def test_a_log_line_takes_the_live_line_away_first(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = console.configure_logging(verbose=False)
    line = console.LiveLine()

    line.show("7 packets/s")
    logger.warning("disk full")
    logger.warning("disk still full")

    live, first, second = terminal.getvalue().partition("7 packets/s")[2].split("\n")[0:3]
    assert live.startswith(console.ERASE)
    assert "disk full" in live
    assert not first.startswith(console.ERASE)
    assert second == ""
