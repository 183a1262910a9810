"""One mirrored interface: its ring, and how it comes back after the interface was gone."""

from __future__ import annotations

from time import monotonic
from typing import Final, Literal

import structlog

from tunnelbridge.errors import UserError
from tunnelbridge.ledger import SenderLedger
from tunnelbridge.linux.libc import Program
from tunnelbridge.linux.libpcap import compile_filter, refuse_marked
from tunnelbridge.linux.netlink import Link, link
from tunnelbridge.linux.ring import Ring
from tunnelbridge.linux.tpacket import find_interface, interface_index
from tunnelbridge.pipeline import Pipeline

Direction = Literal["both", "in", "out"]
BLOCKS_AT_ONCE: Final = 32
"""Blocks that may go into one batch."""
BATCHES_AT_ONCE: Final = 4
"""Batches per wake-up, so that signals and timers are never kept waiting."""
LONGEST_READ: Final = 0.1
"""Seconds after which a wake-up takes no further block: full queues make blocks slow."""
ARPHRD_ETHER: Final = 1  # linux/if_arp.h
ARPHRD_LOOPBACK: Final = 772


def mirrorable(name: str) -> Link:
    """Return an interface's facts; raises UserError where its packets are no Ethernet frames."""
    found = link(name)
    if found.kind not in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
        raise UserError(
            f"interface {name} carries no Ethernet frames (ARPHRD {found.kind}): mirror the Ethernet"
            " interface beneath it, or one in front of it"
        )
    return found


def seen_direction(found: Link, direction: Direction) -> Direction:
    """Return the direction to capture: loopback shows each packet as it leaves and as it comes."""
    return "in" if found.kind == ARPHRD_LOOPBACK and direction == "both" else direction


class InterfaceSource:
    """Reads an interface's ring into the pipeline; survives the interface."""

    def __init__(
        self, name: str, expression: str, direction: Direction, pipeline: Pipeline
    ) -> None:
        self.name = name
        self._expression = expression
        self._direction = direction
        self._pipeline = pipeline
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._seen = 0
        self._dropped = 0
        self._is_down = False
        self._index: int | None = None
        self.ring: Ring | None = None

    def attach(self) -> Ring:
        """Open the ring; raises UserError where the interface or the right to it is missing."""
        direction = seen_direction(mirrorable(self.name), self._direction)
        self.ring = Ring(
            self.name, program=self._program(direction), ignore_outgoing=direction == "in"
        )
        self._seen = self._dropped = 0
        self._is_down = False
        self._index = interface_index(self.name)
        return self.ring

    def is_stale(self) -> bool:
        """Tell whether the interface of this name is another one now, or is there again, or gone."""
        return self._index != find_interface(self.name)

    def _program(self, direction: Direction) -> Program:
        return refuse_marked(
            compile_filter(self._expression, interface=self.name), direction=direction
        )

    def read(self) -> bool:
        """Take the ready blocks through the pipeline.

        False when the interface went down: the same ring goes on once it is up, but libuv has
        stopped to poll a file descriptor that reported an error, so it has to be added again.
        """
        ring = self.ring
        if ring is None:
            return True
        began = monotonic()
        for _ in range(BATCHES_AT_ONCE):
            batch = ring.read(BLOCKS_AT_ONCE)
            if batch is None:
                if not ring.clear_error():
                    return True
                if not self.is_stale():  # otherwise it is gone, which is told elsewhere
                    self._is_down = True
                    self._log.warning("interface is down", interface=self.name)
                return False
            if self._is_down:
                self._is_down = False
                self._log.info("interface is up again", interface=self.name)
            self._seen += len(batch)
            try:
                self._pipeline.process(batch)
            finally:
                ring.release()
            if monotonic() - began > LONGEST_READ:
                break
        return True

    def count_drops(self) -> None:
        """Bring the kernel's drops into the ledger."""
        if self.ring is not None:
            self._account(self.ring.statistics()[1] - self._dropped)

    def pending(self) -> bool:
        """Tell whether the ring still holds packets that were not read."""
        if self.ring is None:
            return False
        packets, drops = self.ring.statistics()
        return packets - drops > self._seen

    def detach(self) -> None:
        """Close the ring; what could not be read any more counts as dropped."""
        ring, self.ring = self.ring, None
        self._index = None
        if ring is None:
            return
        packets, drops = ring.statistics()
        unread = max(packets - drops - self._seen, 0)
        self._account(drops - self._dropped + unread)
        ring.close()

    def _account(self, drops: int) -> None:
        self._dropped += drops
        ledger: SenderLedger = self._pipeline.ledger
        ledger.kernel_dropped += drops
        ledger.received += drops

    def reattach(self) -> bool:
        """Open the ring on an interface that is there again; False if it went away at once."""
        try:
            self.attach()
        except UserError:
            return False
        self._log.info("interface is back", interface=self.name)
        return True
