"""Which capabilities this process has, and what to tell a user who lacks one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from tunnelbridge.errors import UserError

CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Names by bit number (linux/capability.h)."""

_STATUS: Final = Path("/proc/thread-self/status")  # capabilities belong to threads


def effective_capabilities() -> frozenset[str]:
    """Return the names ("CAP_NET_RAW") of the calling thread's effective capabilities.

    Bits that are newer than our table are named by number ("CAP_41").
    """
    for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            return names(int(value, 16))
    return frozenset()  # a kernel without capabilities in /proc: claim nothing


def names(mask: int) -> frozenset[str]:
    """Return the names of the bits that are set in a capability mask."""
    known = len(CAPABILITIES)
    return frozenset(
        f"CAP_{CAPABILITIES[bit] if bit < known else bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    )


def missing(capability: str, what: str) -> UserError:
    """Return the error that says what needs ``capability`` and how to get it.

    For callers to whom the kernel has just answered EPERM.
    """
    grant = "cap_net_raw,cap_net_admin"
    if capability.lower() not in grant.split(","):
        grant += f",{capability.lower()}"
    python = os.path.realpath(sys.executable or "python3")  # setcap refuses symbolic links
    if sys.prefix != sys.base_prefix and python.startswith(f"{sys.prefix}/"):
        once = f"sudo setcap {grant}+ep {python}"
    else:  # a right given to the system's interpreter is given to everybody
        once = (
            f"python3 -m venv --copies VENV, install there, sudo setcap {grant}+ep VENV/bin/python3"
        )
    return UserError(f"{what} needs {capability}: run with sudo, or once: {once}")
