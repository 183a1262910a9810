"""Run set-up work in a thread of its own, which may have entered another network namespace.

Of its own, because setns(2) moves a thread, and because pyroute2 wants to run its event loop where no
other one runs. File descriptors that the work opens belong to that namespace for good.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyroute2 import netns

from tunnelbridge.errors import UserError
from tunnelbridge.linux import privileges

T = TypeVar("T")


def in_thread(work: Callable[[], T], namespace: str | None = None) -> T:
    """Call ``work`` in a short-lived thread; return what it returns or raise what it raises.

    Args:
        work: takes no arguments.
        namespace: a name under /run/netns; without it, the calling thread's own.

    Raises:
        UserError: no such namespace, or no CAP_SYS_ADMIN to enter it.

    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            if namespace is not None:
                _enter(namespace)
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)

    # a daemon, so that Ctrl-C need not wait for what the thread waits for
    name = f"namespace {namespace or '(own)'}"
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures.pop()
    return results[0]


def identity(namespace: str) -> tuple[int, int] | None:
    """Return what tells a namespace from another of the same name; None where there is none."""
    try:
        status = Path(netns.NETNS_RUN_DIR, namespace).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _enter(namespace: str) -> None:
    names = netns.listnetns()
    if namespace not in names:
        there = ", ".join(sorted(names)) or "none"
        raise UserError(
            f"no network namespace named {namespace} (there are: {there}): create it with"
            f" `sudo ip netns add {namespace}`"
        )
    try:
        netns.setns(namespace, flags=0)  # moves this thread only
    except PermissionError:
        raise privileges.missing("CAP_SYS_ADMIN", f"entering namespace {namespace}") from None
    except OSError as error:  # just being made or taken away: its file is there without it
        reason = os.strerror(error.errno or 0)
        raise UserError(f"cannot enter network namespace {namespace}: {reason}") from None
