"""The inject sink: frames out of an interface that exists, in batches.

For an appliance behind a physical port, or an analyser at the other end of a veth pair. The frames
carry the senders' mark, so that a sender on this host does not mirror them again.
"""

from __future__ import annotations

import contextlib
from typing import Final

import numpy as np

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.options import SinkOptions
from collector.sinks.selection import Selection
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.wire_socket import WireSocket

TAG: Final = 4
"""Octets by which a frame with an 802.1Q tag may be longer (packet_snd, net/packet/af_packet.c)."""
TOO_LONG: Final = "too-long"
SEND_QUEUE: Final = 8 << 20
"""Octets that the kernel may hold for the interface; beyond that frames are dropped."""


class InjectSink:
    """Sends frames by ``[NETNS:]IFACE`` at once; what its queue has no room for is dropped.

    Raises UsageError for no name or a wrong filter; UserError where there is no such interface, it is
    down or no Ethernet, or a capability is missing.
    """

    def __init__(self, options: SinkOptions) -> None:
        namespace, separator, interface = options.target.rpartition(":")
        if not interface:
            raise UsageError(f"--inject {options.target}: which interface?")
        self._selection = Selection(options)
        self._socket = in_thread(lambda: WireSocket(interface), namespace if separator else None)
        self._socket.never_wait(SEND_QUEUE)
        self._longest = self._socket.path_mtu()
        self.ledger = SinkLedger(f"inject {options.target}")

    def put(self, delivery: Delivery) -> None:
        """Send what the sink wants of the frames."""
        frames = self._selection.apply(delivery, self.ledger).frames
        fits = frames.total_length <= self._longest + TAG
        if not fits.all():
            self.ledger.dropped[TOO_LONG] += int(np.count_nonzero(~fits))
            frames = frames.select(np.flatnonzero(fits))
        sent = self._socket.send(np.empty((len(frames), 0), np.uint8), frames)
        self.ledger.delivered += sent.packets
        self.ledger.octets += sent.octets
        for cause, count in sent.errors.items():
            self.ledger.dropped[TOO_LONG if cause == "message-too-long" else cause] += count

    def tick(self, now: int) -> None:
        """Look at the MTU again, and for the interface should it have been replaced."""
        with contextlib.suppress(UserError):  # gone: counted as that until it is back
            self._longest = self._socket.path_mtu()

    def is_gone(self) -> bool:
        """Never: the interface may come back."""
        return False

    def close(self) -> None:
        """Close the socket; the interface stays as it is."""
        self._socket.close()
