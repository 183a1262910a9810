"""What a scenario is told with: hosts by their roles, files, and commands as a user types them.

A scenario module has ``NEEDS`` (programs), ``COMMANDS`` (in the order in which a user would type
them), ``build(scene)`` and ``run(scene)``. Its docstring begins with its title and its picture::

    SEND = Command("host", "tunnelbridge send -i eth0 --to gre://198.51.100.7")
    COMMANDS = (SEND,)

    def build(scene):
        scene.hosts("client", "host")
        scene.link("client:eth0 192.0.2.1/24", "host:eth0 192.0.2.2/24")

    def run(scene):
        sender = scene.start(SEND, CLONING)
        scene.check(..., "what is true")
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import compare
import truth
from compare import Frame
from netlab import End, Lab
from process import LabError, Process, wait_until
from report import Report, end

T = TypeVar("T")
CLONING = "cloning"
"""What ``tunnelbridge send`` says when every packet from now on is seen."""
WIDTH = 96
"""Columns in which a command is printed."""


class Command(NamedTuple):
    """A command line as typed on a host, its working directory being the lab's folder."""

    host: str
    line: str

    def __str__(self) -> str:
        words, lines = f"[{self.host}] $ {self.line}".split(" -"), [""]
        for word in [words[0], *(f" -{each}" for each in words[1:])]:  # options with their values
            if len(lines[-1]) + len(word) > WIDTH:
                lines.append("")
            lines[-1] += word
        return f" \\\n{' ' * 7}".join(lines)

    def filled(self, *values: object) -> Command:
        """Return the command with ``{0}``, ``{1}`` … replaced."""
        return Command(self.host, self.line.format(*values))


class Scene:
    """One scenario's network, its typed commands and its checks."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab, self.report = lab, report
        self.namespaces: dict[str, str] = {}
        self.links: list[tuple[End, End]] = []
        self.senders: list[Process] = []
        self._numbers = itertools.count(1)

    @property
    def folder(self) -> Path:
        """Where commands run: their files are here."""
        return self.lab.folder

    # --- building ---

    def hosts(self, *roles: str, ipv6: bool = False) -> None:
        """Make hosts; without ``ipv6`` they say nothing by themselves."""
        for role in roles:
            self.namespaces[role] = self.lab.namespace(role, silent=not ipv6)

    def routers(self, *roles: str) -> None:
        """Make hosts that forward."""
        self.hosts(*roles)
        for role in roles:
            self.lab.setting(self.namespaces[role], "net/ipv4/ip_forward", "1")

    def place(self, name: str) -> End:
        """Return namespace and interface of ``"host:eth0"``."""
        role, _, interface = name.partition(":")
        return self.namespaces[role], interface

    def link(self, a: str, b: str, mtu: int = 1500) -> None:
        """Link two interfaces: ``"host:eth0 192.0.2.2/24 02:00:00:00:02:02"``, each part optional.

        Words after the first are addresses with prefix lengths, or the interface's MAC.
        """
        ends, macs, addresses = [], [], []
        for text in (a, b):
            name, *words = text.split()
            ends.append(self.place(name))
            macs.append(next((word for word in words if "/" not in word), None))
            addresses.append([word for word in words if "/" in word])
        self.lab.veth(ends[0], ends[1], *macs)
        self.links.append((ends[0], ends[1]))
        for (namespace, interface), each in zip(ends, addresses, strict=True):
            if mtu != 1500:
                self.ip(namespace, f"link set {interface} mtu {mtu}")
            self.lab.address(namespace, interface, *each)

    def bridge(self, role: str, *interfaces: str) -> None:
        """Join a host's interfaces by a bridge ``br0``."""
        namespace = self.namespaces[role]
        self.ip(namespace, "link add br0 type bridge")
        for each in interfaces:
            self.ip(namespace, f"link set {each} master br0")
        self.ip(namespace, "link set br0 up")

    def route(self, role: str, destination: str, via: str) -> None:
        """Add a route to a host."""
        self.lab.route(self.namespaces[role], destination, via)

    def ip(self, namespace: str, words: str) -> None:
        """Run ``ip`` in a namespace."""
        self.lab.command("ip", "-n", namespace, *words.split())

    def file(self, name: str, text: str, *, show: bool = True) -> Path:
        """Write a file that commands use, and print it."""
        path = self.folder / name
        path.write_text(text)
        if show:
            self.report.heading(f"{name}:")
            for line in text.strip().splitlines():
                print(f"   {line}")
        return path

    # --- commands ---

    def start(self, command: Command, ready: str | None = None, *, quiet: bool = False) -> Process:
        """Type a command that goes on; with ``ready``, wait until it has printed that."""
        if not quiet:
            print(f"   {command}", flush=True)
        words = command.line.split()
        name = f"{next(self._numbers):02}-{Path(words[0]).name}"
        shell = ["sh", "-c", f"exec {command.line}"]
        process = self.lab.start(name, shell, self.namespaces[command.host], ready)
        if ready == CLONING:
            self.senders.append(process)
        return process

    def end(self, sender: Process, stats: str) -> dict[str, Any]:
        """End one of our programs as Ctrl-C does; return its ledger."""
        if sender in self.senders:
            self.senders.remove(sender)
        return end(sender, self.folder / stats)

    def do(self, command: Command, seconds: float = 30, *, quiet: bool = False) -> str:
        """Type a command and wait for its end; return what it printed."""
        process = self.start(command, quiet=quiet)
        if process.wait(seconds):
            process.running()  # raises with its last words
        return process.out.read_bytes().decode(errors="replace")

    def wait_for_port(self, role: str, port: int) -> None:
        """Wait until a program on a host listens on a TCP port."""
        ask = ["ss", "-H", "-l", "-t", "-n", f"sport = :{port}"]
        wait_until(
            lambda: self.lab.command(*ask, namespace=self.namespaces[role]),
            20, f"port {port} of {role}", every=0.05,
        )  # fmt: skip

    @contextmanager
    def one_processor(self) -> Iterator[None]:
        """Start what is started here on one processor, or frames of a flow overtake each other."""
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            yield
        finally:
            os.sched_setaffinity(0, allowed)

    def exchange(self, serve: Command, ask: Command, *, quiet: bool = False) -> str:
        """Type a server that takes one connection, then a client; return what the client got."""
        with self.one_processor():
            server = self.start(serve, "Listening", quiet=quiet)
            answer = self.do(ask, quiet=quiet)
        server.wait(20)
        return answer

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Return the first true value of ``condition``; LabError if a sender ends, or never."""

        def looked() -> T:
            for sender in self.senders:
                sender.running()  # or raises, with its last words
            return condition()

        return wait_until(looked, 20, what)

    def listen(self, name: str, snaplen: int = 2048) -> Judge:
        """Let a tcpdump write what passes ``"host:eth0"``: the judge."""
        namespace, interface = self.place(name)
        label = name.replace(":", "-")
        return Judge(*truth.capture(self.lab, label, namespace, interface, snaplen))

    def wire(self, name: str) -> Judge:
        """Record what is on the wire of ``"host:eth0"``, offloads undone by the kernel (truth.py)."""
        return Judge(*truth.record(self.lab, *self.place(name)))

    # --- telling ---

    def heading(self, text: str) -> None:
        self.report.heading(text)

    def check(self, holds: object, what: str, otherwise: object = "") -> None:
        """Print whether something is true; the scenario fails if it is not."""
        self.report.check(bool(holds), what, otherwise)

    def same(self, original: Sequence[Frame], clones: Sequence[Frame], what: str = "") -> None:
        """Check that clones are the originals, octet by octet and in order."""
        wrong = compare.difference(original, clones)
        text = what or "every frame arrived bit-exact, in order"
        self.check(original and not wrong, f"{text}: {len(original):,}", wrong)

    def show(self, lines: Sequence[str], most: int = 6) -> None:
        """Print the first lines of what another program says."""
        for line in lines[:most]:
            print(f"   {line[:104]}", flush=True)
        if len(lines) > most:
            print(f"   … {len(lines) - most} more lines", flush=True)


class Judge(NamedTuple):
    """A tcpdump that runs, and its file."""

    process: Process
    path: Path

    def frames(self) -> list[Frame]:
        """Return what it has written so far."""
        self.process.running()
        return compare.read(self.path)

    def settled(self, fins: int) -> list[Frame]:
        """Return the frames once that many TCP segments with FIN, and an ACK after, are there."""
        return wait_until(lambda: _ended(self.frames(), fins), 20, "the connection's end")

    def stop(self) -> list[Frame]:
        """End it; return all that it saw."""
        self.process.stop()
        if (unseen := truth.lost(self.process)) > 0:
            raise LabError(f"{self.process.name} missed {unseen} packets")
        return compare.read(self.path)


def _ended(frames: list[Frame], fins: int) -> list[Frame]:
    segments = compare.tcp(frames)
    flags = [segment.octets[14 + 4 * (segment.octets[14] & 15) + 13] for segment in segments]
    return frames if sum(flag & 1 for flag in flags) >= fins and not flags[-1] & 1 else []
