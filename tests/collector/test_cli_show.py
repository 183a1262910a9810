"""The commands that look at a running collector: when none runs, and when files were kept of one."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lab
from collector import cli
from collector.ledger import CollectorLedger
from collector.reconcile import load
from tunnelbridge import control_client
from tunnelbridge.errors import UserError
from tunnelbridge.ledger import SenderLedger

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def collector(runner_of: Callable[..., Run]) -> Run:
    return runner_of(cli.main, "collector")


@pytest.mark.parametrize("command", [("show", "streams"), ("top", "--once")])
def test_without_a_collector_the_advice_is_the_collectors(
    collector: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(control_client, "RUN", tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for where in ((), ("--control", str(tmp_path / "nosuch.sock"))):
        code, _, err = collector(*command, *where)
        assert code == 1
        assert "is collector listen running?" in err
        assert "--config" not in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("role", ["sender", "collector"])
def test_a_file_of_show_stats_is_as_good_as_one_of_stats(tmp_path: Path, role: str) -> None:
    plain = (
        SenderLedger().as_dict() if role == "sender"
        else CollectorLedger().as_dict("collector listen", (), ())
    )  # fmt: skip
    file, other = tmp_path / "a", "collector" if role == "sender" else "sender"
    for told in (plain, {"ledger": plain, "interfaces": []}):
        file.write_text(json.dumps(told))
        assert load(file, role) == plain
        with pytest.raises(UserError, match="is no ledger of"):
            load(file, other)
    for odd in ({"ledger": None}, {"ledger": 7}, {"ledger": {}}, {}, []):
        file.write_text(json.dumps(odd))
        with pytest.raises(UserError, match="is no ledger of"):
            load(file, role)


def test_what_show_writes_can_be_reconciled(collector: Run, tmp_path: Path) -> None:
    """Of a collector that runs, through a file; one without a sink says what delivers."""
    control, sent, kept = (tmp_path / name for name in ("c.sock", "sent", "kept"))
    sent.write_text(json.dumps(SenderLedger().as_dict()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.57.9", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, "-m", "collector.cli", "listen", "--vxlan", port]
    listening = subprocess.Popen(
        [*program, "--bind", "127.0.57.9", "--no-gre", "--control", str(control)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lab.until(lambda: control_client.answers(control) or listening.poll(), 30, "an answer")
        code, out, _ = collector("show", "stats", "--json", "--control", str(control))
    finally:
        listening.send_signal(signal.SIGINT)
        _, told = listening.communicate(timeout=10)
    assert code == 0
    assert "only counted: deliver them with --pcap, --tap, --serve, --inject or --forward" in told
    kept.write_text(out)
    code, out, err = collector("reconcile", str(sent), str(kept))
    assert (code, err) == (0, "")
    assert "collector, decapsulation" in out
