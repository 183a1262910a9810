"""Reloads of a running sender: of a file's packets, with interfaces that are away, many, at the end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outer
import pcap_files
import pytest

import lab
from tunnelbridge.control_client import ask
from tunnelbridge.errors import UserError

pytestmark = pytest.mark.usefixtures("root")

SEND = [sys.executable, "-m", "tunnelbridge.cli", "send"]


def udp(port: int, number: int = 0) -> bytes:
    payload = outer.udp(number.to_bytes(8), 1000, port)
    return outer.frame(outer.ipv4(payload, 17, "10.0.0.1", "10.0.0.2"))


class Sender:
    """A sender in a process of its own, in a namespace."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self.folder = process, folder

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until_logged(self, text: str, count: int = 1) -> None:
        lab.until(lambda: self.log().count(text) >= count, 10, f"{text!r} in {self.log()}")

    def write(self, config: str) -> None:
        fresh = self.folder / "fresh.toml"  # no reload may find half of it
        fresh.write_text(config)
        fresh.rename(self.folder / "mirror.toml")

    def ask(self, command: str, **rest: Any) -> Any:
        return ask(self.folder / "s.sock", {"command": command, **rest}, 30)

    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("show", what="stats")["ledger"]
        return found

    def matched(self) -> dict[str, int]:
        return {each["name"]: each["matched"] for each in self.ledger()["sessions"]}

    def end(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        self.process.send_signal(number)
        assert self.process.wait(20) == 0, self.log()
        assert "Traceback" not in self.log()
        ledger: dict[str, Any] = json.loads((self.folder / "stats.json").read_text())
        assert ledger["balanced"], ledger
        return ledger


@contextlib.contextmanager
def sending(ns: str, folder: Path, config: str, *options: str) -> Iterator[Sender]:
    (folder / "mirror.toml").write_text(config)
    argv = [
        "ip", "netns", "exec", ns, *SEND, "--config", str(folder / "mirror.toml"),
        "--control", str(folder / "s.sock"), "--stats", str(folder / "stats.json"), *options,
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(argv, stderr=log, text=True)
    sender = Sender(process, folder)
    try:
        sender.until_logged("control socket" if "-r" in options else '"cloning"')
        yield sender
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def inject(ns: str, interface: str, *frames: bytes) -> None:
    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((interface, 0))
            for frame in frames:
                sock.send(frame)

    lab.in_namespace(ns, work)


NINE = """
[sessions.nine]
sources = ["{}"]
expression = "udp port 9"
target = "vxlan://127.0.0.9"
"""
TEN = NINE.replace("nine", "ten").replace("port 9", "port 10").replace("0.0.9", "0.0.10")


def test_a_file_follows_reloads_and_switches_and_stays_a_file(tmp_path: Path) -> None:
    frames = [(n * 2_000_000, udp(9 + n % 2, n)) for n in range(1_000_000 // 250)]
    path = pcap_files.write(tmp_path / "x.pcap", frames)
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        both = (NINE + TEN).format(near, "nosuch0")
        with sending(ns, tmp_path, both, "-r", str(path)) as sender:
            lab.until(lambda: min(sender.matched().values()) > 10, 10)
            sender.ask("disable", session="nine")
            before = sender.matched()
            lab.until(lambda: sender.matched()["ten"] > before["ten"] + 10, 10)
            assert sender.matched()["nine"] == before["nine"]
            sender.ask("enable", session="nine")
            lab.until(lambda: sender.matched()["nine"] > before["nine"], 10)

            sender.write(TEN.replace("0.0.10", "0.0.11").format("nosuch0"))
            assert sender.ask("reload")["changes"]
            before = sender.matched()
            lab.until(lambda: sender.matched()["ten"] > before["ten"] + 10, 10)
            assert sender.matched()["removed sessions"] == before["removed sessions"]

            inject(ns, far, *[udp(10, 1 << 20)] * 5000)
            before = sender.matched()
            lab.until(lambda: sender.matched()["ten"] > before["ten"] + 10, 10)
            ledger = sender.end()
    assert ledger["sources"] == []
    assert ledger["received"] <= len(frames)
    assert sum(each["sent"] for each in ledger["tunnels"]) == ledger["cloned"]


def test_a_reload_while_an_interface_is_away(tmp_path: Path) -> None:
    with (
        lab.namespace() as ns,
        lab.veth(ns, ns) as (near, far),
        lab.veth(ns, ns) as (away, _),
        sending(ns, tmp_path, (NINE + TEN).format(near, away)) as sender,
    ):
        lab.run("ip", "-n", ns, "link", "delete", away)
        sender.until_logged("interface is gone")
        sender.write((NINE + TEN).format(near, away).replace("port 9", "port 7"))
        assert sender.ask("reload")["changes"] == [
            "~ session nine: expression udp port 9 → udp port 7"
        ]
        inject(ns, far, udp(7), udp(9))
        lab.until(lambda: sender.matched()["nine"] == 1, 10)
        sender.write((NINE + TEN).format(near, "nosuch0"))
        with pytest.raises(UserError, match="no interface named nosuch0"):
            sender.ask("reload")
        sender.end()


def test_a_storm_of_hangups_and_the_end_in_the_midst_of_it(tmp_path: Path) -> None:
    with (
        lab.namespace() as ns,
        lab.veth(ns, ns) as (near, far),
        sending(ns, tmp_path, NINE.format(near)) as sender,
    ):
        for number in range(100):
            sender.write((NINE + (TEN if number % 2 else "")).format(near, near))
            sender.process.send_signal(signal.SIGHUP)
            inject(ns, far, udp(9, number))
        asking = [
            threading.Thread(target=_ask_until_it_ends, args=(sender, command))
            for command in ("reload", "show", "reload")
        ]
        for each in asking:
            each.start()
        lab.until(lambda: sender.ledger()["received"] >= 100, 10, "all packets")
        ledger = sender.end()
        for each in asking:
            each.join(20)
            assert not each.is_alive()
    assert ledger["cloned"] == 100, ledger


def _ask_until_it_ends(sender: Sender, command: str) -> None:
    with contextlib.suppress(UserError):  # it has ended
        while sender.process.poll() is None:
            sender.ask(command, what="sessions")
