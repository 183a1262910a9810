"""Namespaces and veth pairs for tests: made by ``ip``, taken down again, and seen to be gone.

Tests that use this need the ``root`` fixture; they say ``import lab`` (pytest puts this folder on
the path). Everything is named with this process's id and a random suffix, so that several test
runs on one machine do not meet. Sockets and other file descriptors that :func:`in_namespace`
returns stay in that namespace for good; close them before the namespace ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tunnelbridge.linux.namespace import in_thread

T = TypeVar("T")

NAMESPACES = Path("/run/netns")


def run(*command: str, ns: str | None = None, check: bool = True) -> str:
    """Run a command, in a namespace if one is named; return what it printed."""
    prefix = ("ip", "netns", "exec", ns) if ns else ()
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def unique(prefix: str) -> str:
    """Return a name of at most 15 characters that no other test run uses."""
    return f"{prefix[:4]}{os.getpid() % 100_000}{secrets.token_hex(2)}"


def until(condition: Callable[[], Any], seconds: float = 5.0, what: str = "condition") -> Any:
    """Return the first true value of ``condition``; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.001)
    return value


def in_namespace(ns: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call ``function`` in a thread that has moved into ``ns``; return or raise its result.

    The calling thread stays where it is.
    """
    return in_thread(lambda: function(*args, **kwargs), ns)


@contextmanager
def namespace(*, ipv6: bool = False) -> Iterator[str]:
    """Make a namespace with loopback up; yield its name; delete it.

    Without ``ipv6`` no interface in it says anything by itself (no MLD, no router solicitation).
    """
    name = unique("tb")
    run("ip", "netns", "add", name)
    try:
        in_namespace(name, _set_ipv6, ipv6)
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)
        assert not (NAMESPACES / name).exists(), f"namespace {name} is still there"


def _set_ipv6(enabled: bool) -> None:
    for scope in ("all", "default"):
        setting = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        setting.write_text("0" if enabled else "1")
    if enabled:  # no second of "tentative" before an address can be used
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")


@contextmanager
def veth(
    ns_a: str,
    ns_b: str,
    address_a: str | None = None,
    address_b: str | None = None,
    mtu: int = 1500,
) -> Iterator[tuple[str, str]]:
    """Make a veth pair between two namespaces (or inside one), up; yield both names; delete it.

    Addresses are written with their prefix length ("10.0.0.1/24").
    """
    end_a, end_b = unique("va"), unique("vb")
    run("ip", "-n", ns_a, "link", "add", end_a, "mtu", str(mtu), "type", "veth",
        "peer", "name", end_b, "mtu", str(mtu), "netns", ns_b)  # fmt: skip
    try:
        for ns, end, address in ((ns_a, end_a, address_a), (ns_b, end_b, address_b)):
            if address:
                nodad = ("nodad",) if ":" in address else ()
                run("ip", "-n", ns, "address", "add", address, "dev", end, *nodad)
            run("ip", "-n", ns, "link", "set", end, "up")
        until(lambda: carrier(ns_a, end_a) and carrier(ns_b, end_b), what=f"carrier on {end_a}")
        yield end_a, end_b
    finally:
        run("ip", "-n", ns_a, "link", "delete", end_a, check=False)  # a test may have deleted it
        assert end_a not in run("ip", "-n", ns_a, "-o", "link"), f"{end_a} is still there"


def carrier(ns: str, interface: str) -> bool:
    """Tell whether an interface is up and has a carrier."""
    return "LOWER_UP" in run("ip", "-n", ns, "-o", "link", "show", "dev", interface)


def need(*tools: str) -> None:
    """Skip the calling test, naming the tool that is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, which is not installed")


def descriptors() -> dict[str, str]:
    """Return this process's open file descriptors and what they are."""
    gc.collect()  # what only waits to be collected is not open any more
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[path.name] = str(path.readlink())
    return found


def left_open(before: dict[str, str]) -> list[str]:
    """Return what is open now and was not ``before``; what others closed meanwhile is no matter."""
    return [what for number, what in descriptors().items() if before.get(number) != what]
