"""Run set-up work in a thread of its own, which may have entered another network namespace.

Of its own, because setns(2) moves a thread, and because pyroute2 wants to run its event loop where no
other one runs. File descriptors that the work opens belong to that namespace for good.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, privileges

T = TypeVar("T")

NAMESPACES: Final = Path("/run/netns")


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

    thread = threading.Thread(target=run, name=f"namespace {namespace or '(own)'}")
    thread.start()
    thread.join()
    if failures:
        raise failures.pop()
    return results[0]


def _enter(namespace: str) -> None:
    try:
        if namespace in ("", ".", "..") or "/" in namespace:
            raise FileNotFoundError
        fd = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        names = sorted(path.name for path in NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []
        raise UserError(
            f"no network namespace named {namespace} (there are: {', '.join(names) or 'none'}): "
            f"create it with `sudo ip netns add {namespace}`"
        ) from None
    try:
        libc.setns(fd)
    except PermissionError:
        raise privileges.missing("CAP_SYS_ADMIN", f"entering namespace {namespace}") from None
    finally:
        os.close(fd)
