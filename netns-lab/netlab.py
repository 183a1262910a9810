"""Networks of namespaces on one machine: made by ``ip``, taken down again, and seen to be gone.

Undo is registered beside do, and before it, so that an interruption in between leaves nothing::

    with Lab() as lab:
        a, b = lab.namespace("a"), lab.namespace("b")
        lab.veth((a, "eth0"), (b, "eth0"))
        lab.address(a, "eth0", "192.0.2.1/24")
        server = lab.start("server", ["python3", "-m", "http.server"], a, ready="Serving")
        ...

Addresses are documentation addresses: 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 and
2001:db8::/32. Everything needs root; processes are ended by their id.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from process import LabError, Process, wait_until

from tunnelbridge.linux.namespace import in_thread

T = TypeVar("T")
End = tuple[str, str]
"""One end of a link: (namespace, interface)."""

NAMESPACES = Path("/run/netns")
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def inside(namespace: str, function: Callable[..., T], *args: Any) -> T:
    """Call ``function`` in a thread that has moved into ``namespace``; return or raise its result.

    Sockets that it opens stay in that namespace, whoever uses them.
    """
    return in_thread(lambda: function(*args), namespace)


class Lab:
    """Namespaces, links and programs that end with the ``with`` block.

    With ``keep`` the namespaces and files stay (programs end all the same).
    """

    def __init__(self, *, verbose: bool = False, keep: bool = False) -> None:
        self.verbose, self.keep = verbose, keep
        self.suffix = f"{os.getpid()}{secrets.token_hex(1)}"
        self.folder = Path(tempfile.mkdtemp(prefix="tunnelbridge-lab-"))
        self.namespaces: list[str] = []
        self._processes: list[Process] = []
        self._undo: list[Callable[[], object]] = [self._remove_folder]
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {each: signal.signal(each, _interrupt) for each in ENDING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for each in self._handlers:  # a second Ctrl-C must not leave half of it standing
            signal.signal(each, signal.SIG_IGN)
        try:
            self._end(failing=error is not None)
        finally:
            for each, handler in self._handlers.items():
                signal.signal(each, handler)

    def defer(self, undo: Callable[[], object]) -> None:
        """Call ``undo`` at the end; the last deferred is called first."""
        self._undo.append(undo)

    def command(self, *argv: str, namespace: str | None = None, check: bool = True) -> str:
        """Run a command to its end, in a namespace if one is named; return what it printed."""
        full = _in(namespace, argv)
        if self.verbose:
            print("+", shlex.join(full), file=sys.stderr)
        try:
            done = subprocess.run(
                full, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
            )
        except FileNotFoundError:
            raise LabError(
                f"{full[0]} is not installed: tools/setup scenarios installs it"
            ) from None
        if check and done.returncode:
            raise LabError(f"{shlex.join(full)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def namespace(self, role: str, *, silent: bool = False) -> str:
        """Make a namespace with loopback up; return its name.

        In a ``silent`` one no interface says anything by itself: there is no IPv6.
        """
        name = f"tb-{role}-{self.suffix}"
        self.namespaces.append(name)
        self.defer(lambda: self._delete(name))
        self.command("ip", "netns", "add", name)
        self.command("ip", "-n", name, "link", "set", "lo", "up")
        if silent:
            for scope in ("all", "default"):
                self.setting(name, f"net/ipv6/conf/{scope}/disable_ipv6", "1")
        return name

    def setting(self, namespace: str, key: str, value: str) -> None:
        """Write a kernel setting of a namespace: ``net/ipv4/ip_forward``."""
        if self.verbose:
            print(f"+ [{namespace}] echo {value} > /proc/sys/{key}", file=sys.stderr)
        inside(namespace, Path("/proc/sys", key).write_text, value)

    def veth(self, a: End, b: End, mac_a: str | None = None, mac_b: str | None = None) -> None:
        """Link two namespaces by a veth pair, both ends up, offloads as the kernel sets them."""
        first = ("address", mac_a) if mac_a else ()
        second = ("address", mac_b) if mac_b else ()
        self.command(
            "ip", "link", "add", a[1], *first, "netns", a[0],
            "type", "veth", "peer", "name", b[1], *second, "netns", b[0],
        )  # fmt: skip
        for namespace, interface in (a, b):
            self.command("ip", "-n", namespace, "link", "set", interface, "up")
        wait_until(lambda: self.is_up(*a) and self.is_up(*b), 5, f"{a[1]} to come up")

    def is_up(self, namespace: str, interface: str) -> bool:
        """Tell whether an interface is there, up, and has a carrier."""
        shown = self.command(
            "ip", "-n", namespace, "-o", "link", "show", "dev", interface, check=False
        )
        return "LOWER_UP" in shown

    def address(self, namespace: str, interface: str, *addresses: str) -> None:
        """Add addresses with prefix lengths to an interface; IPv6 ones can be used at once."""
        for each in addresses:
            nodad = ("nodad",) if ":" in each else ()
            self.command("ip", "-n", namespace, "address", "add", each, "dev", interface, *nodad)

    def route(self, namespace: str, destination: str, via: str) -> None:
        """Add a route: ``default`` or a prefix, by a next hop."""
        self.command("ip", "-n", namespace, "route", "add", destination, "via", via)

    def start(
        self, name: str, argv: Sequence[str], namespace: str | None = None, ready: str | None = None
    ) -> Process:
        """Start a program; with ``ready``, wait until it has printed that text."""
        full = _in(namespace, argv)
        if self.verbose:
            print("+", shlex.join(full), "&", file=sys.stderr)
        process = Process(name, full, self.folder)
        self._processes.append(process)
        if ready is not None:
            wait_until(lambda: process.said(ready), 15, f"{name} to print {ready!r}")
        return process

    # --- the end ---

    def _end(self, *, failing: bool) -> None:
        problems: list[str] = []
        for step in [*map(_stopper, reversed(self._processes)), *reversed(self._undo)]:
            try:
                step()
            except (LabError, OSError) as error:
                problems.append(str(error))
        if not self.keep:
            problems += [
                f"{name} is still there" for name in self.namespaces if (NAMESPACES / name).exists()
            ]
        problems += [
            f"{each.name} still runs" for each in self._processes if each.popen.poll() is None
        ]
        if problems and not failing:  # else what went wrong first matters more
            raise LabError("the lab could not be taken down: " + "; ".join(problems))

    def _delete(self, name: str) -> None:
        if self.keep or not (NAMESPACES / name).exists():
            return
        for pid in self.command("ip", "netns", "pids", name).split():
            if int(pid) != os.getpid():  # started a moment before an interruption
                os.kill(int(pid), signal.SIGKILL)
        self.command("ip", "netns", "delete", name)

    def _remove_folder(self) -> None:
        if not self.keep:
            shutil.rmtree(self.folder)


def _in(namespace: str | None, argv: Sequence[str]) -> list[str]:
    return [*(("ip", "netns", "exec", namespace) if namespace else ()), *argv]


def _stopper(process: Process) -> Callable[[], object]:
    return process.stop


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
