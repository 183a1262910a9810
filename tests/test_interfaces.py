"""Sources that come and go: by glob, in other namespaces, while everything runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outer
import pytest

import lab

pytestmark = pytest.mark.usefixtures("root")

SENDER = [sys.executable, "-m", "tunnelbridge.cli", "send"]


def numbered(number: int) -> bytes:
    return outer.frame(
        outer.ipv4(outer.udp(b"n%06d" % number, 1000, 9), 17, "10.0.0.1", "10.0.0.2")
    )


class Running:
    """A sender in its own process, its log, and where its clones arrive."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, far: socket.socket) -> None:
        self.process, self.folder, self.far = process, folder, far
        self.seen: list[bytes] = []

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until_logged(self, text: str, count: int = 1) -> None:
        lab.until(lambda: self.log().count(text) >= count, 10, f"{text!r} in {self.log()}")

    def ask(self, *command: str) -> Any:
        from tunnelbridge.control_client import ask

        request = {"command": command[0]}
        request |= {"what": command[1]} if command[0] == "show" else {}
        request |= {"session": command[1]} if command[0] in ("enable", "disable") else {}
        return ask(self.folder / "control.sock", request, 30)

    def arrived(self) -> list[bytes]:
        """Return the inner frames that have arrived so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.seen.append(self.far.recv(65535)[8:])
        return self.seen

    def end(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log()
        ledger: dict[str, Any] = json.loads((self.folder / "stats.json").read_text())
        assert ledger["balanced"], ledger
        return ledger


@contextlib.contextmanager
def sending(folder: Path, config: str) -> Iterator[Running]:
    """Run ``send --config`` in this namespace; ``PORT`` in the file is where clones are awaited."""
    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    far.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    far.bind(("127.0.0.1", 0))
    far.setblocking(False)
    write(folder, config, far)
    with (folder / "log").open("w") as log, far:
        process = subprocess.Popen(
            [
                *SENDER, "--config", str(folder / "mirror.toml"),
                "--stats", str(folder / "stats.json"), "--control", str(folder / "control.sock"),
            ],
            stderr=log,
            text=True,
        )  # fmt: skip
        running = Running(process, folder, far)
        try:
            running.until_logged('"cloning"')
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def write(folder: Path, config: str, far: socket.socket) -> None:
    config = config.replace("PORT", str(far.getsockname()[1]))
    (folder / "mirror.toml").write_text(config)


def send(ns: str | None, interface: str, *frames: bytes) -> None:
    """Send frames out of an interface, so that its peer receives them."""

    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((interface, 0))
            for frame in frames:
                sock.send(frame)

    work() if ns is None else lab.in_namespace(ns, work)


SESSION = """
[sessions.s]
sources = [{}]
target = "vxlan://127.0.0.1:PORT"
expression = "udp port 9"
direction = "in"
"""


def test_a_glob_follows_interfaces_that_appear_and_vanish(tmp_path: Path) -> None:
    prefix = f"g{os.getpid() % 10000}x"
    with lab.namespace() as ns, sending(tmp_path, SESSION.format(f'"{ns}:{prefix}*"')) as sender:
        for number in range(3):
            name = f"{prefix}{number}"
            lab.run("ip", "-n", ns, "link", "add", name, "type", "veth", "peer", "name", "far")
            for each in (name, "far"):
                lab.run("ip", "-n", ns, "link", "set", each, "up")
            sender.until_logged("interface is mirrored", number + 1)
            lab.until(lambda: lab.carrier(ns, "far"))
            send(ns, "far", numbered(number))
            lab.until(lambda: numbered(number) in sender.arrived(), 10, "the clone")  # noqa: B023
            lab.run("ip", "-n", ns, "link", "delete", name)
            lab.until(lambda: sender.ask("show", "sessions")[0]["attached"] == [], 10)
        ledger = sender.end()
    assert sender.seen == [numbered(number) for number in range(3)]
    assert [each["name"] for each in ledger["sources"]] == ["vanished interfaces"]
    assert ledger["sources"][0]["received"] == 3


def test_a_namespace_is_let_go_when_its_name_is_gone_and_found_again(tmp_path: Path) -> None:
    ns = lab.unique("tb")
    peer = lab.unique("pv")
    config = SESSION.format(f'"{ns}:eth0"')

    def build() -> None:
        lab.run("ip", "netns", "add", ns)
        lab.run("ip", "link", "add", peer, "type", "veth", "peer", "name", "eth0", "netns", ns)
        lab.run("ip", "-n", ns, "link", "set", "eth0", "up")
        lab.run("ip", "link", "set", peer, "up")
        lab.until(lambda: lab.carrier(ns, "eth0"))

    build()
    try:
        with sending(tmp_path, config) as sender:
            send(None, peer, numbered(1))
            lab.until(lambda: numbered(1) in sender.arrived(), 10, "the first clone")
            lab.run("ip", "netns", "delete", ns)
            # a socket of ours in it would keep the namespace, and the cable, alive
            lab.until(lambda: not Path("/sys/class/net", peer).exists(), 10, "the cable to go")
            build()
            sender.until_logged("interface is back")
            send(None, peer, numbered(2))
            lab.until(lambda: numbered(2) in sender.arrived(), 10, "the second clone")
            sender.end()
    finally:
        lab.run("ip", "netns", "delete", ns, check=False)
        lab.run("ip", "link", "delete", peer, check=False)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ('"nosuch0"', "no interface named nosuch0"),
        ('"nosuch:eth0"', "no network namespace named nosuch"),
    ],
)
def test_what_is_named_must_be_there(tmp_path: Path, sources: str, message: str) -> None:
    (tmp_path / "x.toml").write_text(SESSION.format(sources).replace("PORT", "9"))
    done = subprocess.run(
        [*SENDER, "--config", str(tmp_path / "x.toml"), "--control", str(tmp_path / "x.sock")],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


TWO = """
[tunnels]
kept = "vxlan://127.0.0.1:PORT"
[sessions.kept]
sources = ["{}"]
target = "kept"
expression = "udp port 9"
direction = "in"
"""


def test_reloads_lose_no_packet_of_an_unchanged_session(tmp_path: Path) -> None:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        config = TWO.format(f"{ns}:{near}")
        other = '[sessions.other{0}]\nsources = ["{1}:{2}"]\npriority = 7\n'
        other += 'target = "gre://127.0.0.1?key={0}"\nexpression = "udp port {0}"\n'
        with sending(tmp_path, config) as sender:
            sent = 0
            for reload in range(10):
                write(tmp_path, config + other.format(reload + 1, ns, near), sender.far)
                asking = asyncio.run(_reload_under_load(sender, ns, far, sent))
                sent += asking[0]
                assert any("other" in line for line in asking[1]), asking[1]
            lab.until(lambda: len(sender.arrived()) >= sent, 10, f"{sent} clones")
            assert sender.arrived() == [numbered(number) for number in range(sent)]
            ledger = sender.end()
    matched = {each["name"]: each["matched"] for each in ledger["sessions"]}
    assert matched["kept"] == sent > 100
    assert sum(each["sent"] for each in ledger["tunnels"]) == sent


async def _reload_under_load(
    sender: Running, ns: str, interface: str, first: int
) -> tuple[int, list[str]]:
    """Reload while frames are sent all the time; return how many, and what changed."""
    task = asyncio.create_task(asyncio.to_thread(sender.ask, "reload"))
    count = 0

    def work() -> None:
        nonlocal count
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((interface, 0))
            while not task.done() or count < 20:
                sock.send(numbered(first + count))
                count += 1
                time.sleep(0.0002)

    await asyncio.to_thread(lambda: lab.in_namespace(ns, work))
    return count, (await task)["changes"]


def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    from tunnelbridge.errors import UserError

    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        config = TWO.format(f"{ns}:{near}")
        with sending(tmp_path, config) as sender:
            before = sender.ask("show", "sessions")
            for bad, why in (
                ("[sessions.kept\n", "mirror.toml"),
                ("", "mirrors nothing"),
                (config.replace("udp port 9", "udp prt 9"), "udp prt 9"),
                (config.replace('target = "kept"', 'target = "nowhere"'), "nowhere"),
                (config.replace(near, "nosuch0"), "nosuch0"),
                (config.replace(":PORT", ":PORT?local=192.0.2.77"), "not an address of this host"),
            ):
                write(tmp_path, bad, sender.far)
                with pytest.raises(UserError, match=why):
                    sender.ask("reload")
                assert sender.ask("show", "sessions") == before
            sender.process.send_signal(signal.SIGHUP)
            sender.until_logged("not reloaded")
            send(ns, far, numbered(1))
            lab.until(lambda: sender.arrived() == [numbered(1)], 10, "the clone")
            sender.end()


def test_disable_and_enable_and_a_reload_in_between(tmp_path: Path) -> None:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        config = TWO.format(f"{ns}:{near}")
        with sending(tmp_path, config) as sender:
            assert sender.ask("disable", "kept") == {"changed": True}
            send(ns, far, numbered(1))
            write(tmp_path, config.replace("[sessions", "# still off\n[sessions"), sender.far)
            sender.process.send_signal(signal.SIGHUP)
            sender.until_logged("reloaded: nothing changed")
            assert sender.ask("show", "sessions")[0]["enabled"] is False
            assert sender.ask("enable", "kept") == {"changed": True}
            send(ns, far, numbered(2))
            lab.until(lambda: sender.arrived(), 10, "a clone")
            assert sender.arrived() == [numbered(2)]
            assert sender.ask("show", "stats")["ledger"]["cloned"] == 1
            sender.end()
