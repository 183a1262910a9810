"""The sendmmsg of one batch, and what its errors mean: whose they are, and what becomes of the rest.

A full queue is waited for, but not for long. An error may be an ICMP error's that an earlier packet
brought back; then the packet at hand is tried again. What a packet itself meets costs that packet only,
a missing route all that are left.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Final

from tunnelbridge.batch import Column
from tunnelbridge.linux import libc
from tunnelbridge.linux.endpoint import NO_ROUTE, icmp_errors
from tunnelbridge.linux.messages import Messages

PATIENCE: Final = 0.1  # seconds the sending of one batch may wait for a full queue
ATTEMPTS_AFTER_ICMP: Final = 8

_CAUSES: Final = {
    errno.ENETUNREACH: "no-route",
    errno.EHOSTUNREACH: "host-unreachable",
    errno.ENETDOWN: "network-down",
    errno.ENXIO: "no-interface",
    errno.EMSGSIZE: "message-too-long",
    errno.EPERM: "not-permitted",
    errno.EACCES: "not-permitted",
    errno.ENOBUFS: "no-buffers",
}


@dataclass(slots=True)
class Sent:
    """What became of one batch: ``packets`` + all ``errors`` = its length.

    ``octets`` counts inner octets of sent packets. ``errors`` maps a cause to packets.
    ``unreachable`` counts ICMP errors that earlier packets brought back; they cost no packet here.
    """

    packets: int = 0
    octets: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    unreachable: int = 0

    def fail(self, cause: str, packets: int) -> None:
        """Count packets that were not sent."""
        self.errors[cause] = self.errors.get(cause, 0) + packets


class Push:
    """The sending of one batch, of which ``sent`` becomes the result.

    ``patience`` is how many seconds a full queue may be waited for, all in all.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.sent = Sent()
        self._patience = patience

    def send(self, sock: socket.socket, messages: Messages, lengths: Column) -> tuple[int, str]:
        """Send the prepared messages, of ``lengths`` inner octets each.

        Returns how many are settled and, if the rest must fail, why.
        """
        sent, fd, position, attempts = self.sent, sock.fileno(), 0, 0
        while position < len(lengths):
            left = len(lengths) - position
            try:
                done = libc.sendmmsg(fd, messages.at(position), left, socket.MSG_DONTWAIT)
            except InterruptedError:
                continue
            except OSError as error:
                if _is_full(sock, error):
                    if self.wait(sock):
                        continue
                    return position, "queue-full"
                # An ICMP error for an earlier packet is reported once by the next send; if there
                # was none in the queue, a second failure is this packet's own.
                returned = icmp_errors(sock)
                sent.unreachable += returned
                attempts += 1
                if attempts < (ATTEMPTS_AFTER_ICMP if returned else 2):
                    continue
                if error.errno in NO_ROUTE:
                    return position, _cause(error)
                sent.fail(_cause(error), 1)
                position, attempts = position + 1, 0
                continue
            sent.packets += done
            sent.octets += int(lengths[position : position + done].sum())
            position, attempts = position + done, 0
            if done < left:  # sendmmsg swallowed the error; an ICMP error is still in the queue
                sent.unreachable += icmp_errors(sock)
        return position, ""

    def wait(self, sock: socket.socket) -> bool:
        """Wait until ``sock`` takes more; False when the patience is used up."""
        if self._patience <= 0:
            return False
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        began = time.monotonic()
        ready = poller.poll(self._patience * 1000)
        self._patience -= time.monotonic() - began
        if ready and ready[0][1] & select.POLLERR:  # a waiting ICMP error would end every poll
            self.sent.unreachable += icmp_errors(sock)
        return bool(ready)


def _is_full(sock: socket.socket, error: OSError) -> bool:
    """Tell a full send buffer from a queue that drops.

    A UDP socket says EAGAIN. A raw socket says ENOBUFS for both (ip_append_data takes up to twice
    SO_SNDBUF), but with a full buffer it is not writable.
    """
    if error.errno != errno.ENOBUFS:
        return error.errno == errno.EAGAIN
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    return not any(events & select.POLLOUT for _, events in poller.poll(0))


def _cause(error: OSError) -> str:
    """Return the slug errors are counted under."""
    code = error.errno or 0
    return _CAUSES.get(code) or errno.errorcode.get(code, os.strerror(code)).lower().replace(
        "_", "-"
    )
