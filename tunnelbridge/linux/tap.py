"""A tap interface for an analyser to listen on: silent, without addresses, one write a frame.

The best place for it is a network namespace of its own: frames for an address of this host that are
written to a tap would otherwise reach this host's own stack. Source: the kernel's
Documentation/networking/tuntap.rst and drivers/net/tun.c.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tunnelbridge.batch import Batch
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import privileges
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.options import IFF_UP

TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_MULTI_QUEUE: Final = 0x0100
IFF_NOARP, IFF_MULTICAST = 0x80, 0x1000  # linux/if.h

DEVICE: Final = Path("/dev/net/tun")
MTU: Final = 65521
"""The largest the tun driver takes: 65535 less an Ethernet header."""
SHORTEST: Final = 14
LONGEST: Final = 65535 + 14
LONGEST_NAME: Final = 15  # IFNAMSIZ with its zero
MOST_QUEUES: Final = 256  # MAX_TAP_QUEUES, drivers/net/tun.c

_CAUSES: Final = {errno.EIO: "tap-down", errno.EAGAIN: "tap-full"}


@dataclass(frozen=True, slots=True)
class TapResult:
    """What became of a batch: frames and octets delivered, and frames dropped by cause."""

    delivered: int
    octets: int
    dropped: dict[str, int] = field(default_factory=dict)


class Tap:
    """An open tap. It vanishes with :meth:`close` unless it existed before.

    ``silent`` tells whether it could be kept from saying anything by itself (IPv6 and ARP off);
    not so on a tap that belongs to this user while somebody else set it up, or where /proc/sys
    cannot be written.

    A tap with several queues tells its readers by which of them a frame came (the frame's recorded
    receive queue, which PACKET_FANOUT_QM goes by).
    """

    def __init__(self, fds: list[int], name: str, silent: bool) -> None:
        self.name = name
        self.silent = silent
        self._fds = fds

    def fileno(self) -> int:
        """Return the first queue's descriptor; reading it gives what the host sends to the tap."""
        return self._fds[0]

    @property
    def queues(self) -> int:
        """How many queues there are."""
        return len(self._fds)

    def write(self, batch: Batch, queue: int = 0) -> TapResult:
        """Write every frame by one queue; never raises for a frame that the tap does not take.

        Causes: "short" (< 14 octets), "too-long" (> 65549), "tap-down", "tap-full", else the
        errno's name. One write a frame is what the driver offers; the loop costs 0.6 µs a frame.
        """
        dropped: dict[str, int] = {}
        total = batch.total_length
        short, long = total < SHORTEST, total > LONGEST
        for cause, refused in (("short", short), ("too-long", long)):
            if refused.any():
                dropped[cause] = int(np.count_nonzero(refused))
        if dropped:
            batch = batch.select(~(short | long))
        if batch.head_length is None:
            octets, failed = _write_bodies(self._fds[queue], batch)
        else:
            octets, failed = _write_heads_and_bodies(self._fds[queue], batch)
        for code in failed:
            cause = _CAUSES.get(code) or errno.errorcode.get(code, str(code)).lower()
            dropped[cause] = dropped.get(cause, 0) + 1
        return TapResult(len(batch) - len(failed), octets, dropped)

    def close(self) -> None:
        """Close the tap; closing twice is no error."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


def _write_bodies(fd: int, batch: Batch) -> tuple[int, list[int]]:
    """Write frames that have no head; return octets written and an errno per refused frame."""
    memory, write, octets = batch.memory.data, os.write, 0
    failed: list[int] = []
    for start, end in zip(batch.start.tolist(), (batch.start + batch.length).tolist(), strict=True):
        try:
            octets += write(fd, memory[start:end])
        except OSError as error:
            failed.append(error.errno or 0)
    return octets, failed


def _write_heads_and_bodies(fd: int, batch: Batch) -> tuple[int, list[int]]:
    assert batch.head_start is not None
    assert batch.head_length is not None
    head, memory, writev, octets = batch.head.data, batch.memory.data, os.writev, 0
    failed: list[int] = []
    for head_start, head_end, start, end in zip(
        batch.head_start.tolist(),
        (batch.head_start + batch.head_length).tolist(),
        batch.start.tolist(),
        (batch.start + batch.length).tolist(),
        strict=True,
    ):
        try:
            octets += writev(fd, (head[head_start:head_end], memory[start:end]))
        except OSError as error:
            failed.append(error.errno or 0)
    return octets, failed


def open_tap(name: str, namespace: str | None = None, queues: int = 1) -> Tap:
    """Create the tap ``name`` (or attach to this user's own), up and silent; see :class:`Tap`.

    Args:
        name: at most 15 characters.
        namespace: a name under /run/netns; without it, the calling thread's own.
        queues: 1 to 256; more than one need a kernel with IFF_MULTI_QUEUE (since Linux 3.8).

    Raises:
        UsageError: a name that no interface can have, or too many queues.
        UserError: name in use, no such namespace, no tun driver, missing capability.

    """
    _check_name(name)
    if not 1 <= queues <= MOST_QUEUES:
        raise UsageError(f"tap {name}: {queues} queues: expected 1 to {MOST_QUEUES}")
    return in_thread(lambda: _open(name, queues), namespace)


def _check_name(name: str) -> None:
    """Refuse what dev_valid_name (net/core/dev.c) refuses, and the kernel's "%d" patterns."""
    wrong = name in ("", ".", "..") or any(c in "/:%\0" or c.isspace() for c in name)
    if wrong or len(name.encode()) > LONGEST_NAME:
        raise UsageError(
            f"{name!r} cannot name a tap: 1 to {LONGEST_NAME} characters without space, '/', "
            "':' and '%'"
        )


def _open(name: str, queues: int) -> Tap:
    fds: list[int] = []
    flags = IFF_TAP | IFF_NO_PI | (IFF_MULTI_QUEUE if queues > 1 else 0)
    try:
        for _ in range(queues):
            fds.append(_open_device(name))
            _attach(fds[-1], name, flags)
        return Tap(fds, name, _set_up(name))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _open_device(name: str) -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise privileges.missing("CAP_NET_ADMIN", f"creating the tap {name}") from None
    except OSError:
        raise UserError(
            f"no {DEVICE} for the tap {name}: load the driver with `sudo modprobe tun`"
        ) from None


def _attach(fd: int, name: str, flags: int) -> None:
    request = struct.pack("16sH22x", name.encode(), flags)  # struct ifreq
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except PermissionError:
        raise privileges.missing("CAP_NET_ADMIN", f"creating the tap {name}") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise UserError(
                f"tap {name} is in use by another program: stop it or take another name"
            ) from None
        if error.errno == errno.EINVAL:
            raise UserError(
                f"{name} exists and is not a tap of the usual kind: take another name"
            ) from None
        raise


def _set_up(name: str) -> bool:
    """Silence the tap and bring it up; return whether it is silent.

    IPv6 goes first: once up, it would send neighbour and router solicitations.
    """
    silent = _disable_ipv6(name)
    try:
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname=name)[0]
            netlink.link("set", index=index, flags=IFF_NOARP, mask=IFF_NOARP | IFF_MULTICAST)
            netlink.link("set", index=index, mtu=MTU)
            netlink.link("set", index=index, flags=IFF_UP, mask=IFF_UP)
    except NetlinkError as error:
        if error.code != errno.EPERM:
            raise
        return False  # our own tap, set up by an administrator: use it as it is
    return silent


def _disable_ipv6(name: str) -> bool:
    setting = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")  # of this thread's namespace
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        try:
            setting.write_text("1", encoding="ascii")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return False
    return True
