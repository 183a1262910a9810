"""One mirrored interface: its ring, and how it comes back after the interface was gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic, time_ns
from typing import Final, TypeVar

import structlog

from tunnelbridge.clone.rules import Direction
from tunnelbridge.errors import UserError
from tunnelbridge.ledger import SourceLedger
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.netlink import Link, link
from tunnelbridge.linux.ring import Ring
from tunnelbridge.linux.tpacket import find_interface, interface_index
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.policy.programs import KernelProgram, common_direction
from tunnelbridge.policy.selection import Selection

T = TypeVar("T")
SETTLING: Final = 1_000_000
"""Nanoseconds after which a new filter has surely been applied to every packet that comes."""
BLOCKS_AT_ONCE: Final = 32
"""Blocks that may go into one batch."""
BATCHES_AT_ONCE: Final = 4
"""Batches per wake-up, so that signals and timers are never kept waiting."""
LONGEST_READ: Final = 0.1
"""Seconds after which a wake-up takes no further block: full queues make blocks slow."""
MOST_BLOCKS: Final = 256
"""Of a ring: 64 MiB, half a second at 1 Gbit/s."""
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
    """Reads an interface's ring into the pipeline; survives the interface.

    Args:
        name: the interface.
        namespace: the network namespace it is in, by name; None for our own.
        pipeline: takes the batches.

    """

    def __init__(self, name: str, namespace: str | None, pipeline: Pipeline) -> None:
        self.name = name
        self.namespace = namespace
        self.ledger = SourceLedger(name if namespace is None else f"{namespace}:{name}")
        self.ring: Ring | None = None
        self._pipeline = pipeline
        self._selection = Selection((), {})
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()
        self._seen = 0
        self._dropped = 0
        self._is_down = False
        self._index: int | None = None

    def attach(self, blocks: int = MOST_BLOCKS) -> Ring:
        """Open the ring; raises UserError where the interface or the right to it is missing."""
        self.ring = self._inside(lambda: self._open(blocks))
        self._seen = self._dropped = 0
        self._is_down = False
        return self.ring

    def _open(self, blocks: int) -> Ring:
        kernel, direction = self._select()
        self._index = interface_index(self.name)
        ring = Ring(
            self.name, program=kernel.program, ignore_outgoing=direction == "in", blocks=blocks
        )
        self._selection.exact_from = 0 if kernel.is_exact else None
        return ring

    def _select(self) -> tuple[KernelProgram, Direction]:
        """Let the sessions of now decide; return the kernel's part and the direction to capture."""
        found = mirrorable(self.name)
        sessions = self._pipeline.policy.for_source(self.namespace, self.name)
        plans = [session.plan for session in sessions]
        direction = seen_direction(found, common_direction(plans))
        programs = self._pipeline.policy.programs.of_source(plans, self.name, direction)
        self._selection = Selection(sessions, programs.expressions)
        return programs.kernel, direction

    def follow_policy(self) -> None:
        """Take over what sessions are now; packets that are in the ring already are decided again."""
        if self.ring is not None:
            kernel, direction = self._inside(self._select)
            self.ring.set_filter(kernel.program, ignore_outgoing=direction == "in")
            self._selection.exact_from = time_ns() + SETTLING if kernel.is_exact else None

    def _inside(self, work: Callable[[], T]) -> T:
        try:
            return work() if self.namespace is None else in_thread(work, self.namespace)
        except OSError as error:  # it vanished meanwhile, or there are no descriptors left
            reason = os.strerror(error.errno or 0)
            raise UserError(f"cannot mirror {self.ledger.name}: {reason}") from None

    def is_stale(self) -> bool:
        """Tell whether the interface of this name is another one now, or is there again, or gone."""
        return self._index != self.find()

    def find(self) -> int | None:
        """Return the index of the interface of this name, None where there is none now."""
        try:
            return self._inside(lambda: find_interface(self.name))
        except UserError:  # the namespace is gone
            return None

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
            self.ledger.received += len(batch)
            self.ledger.octets += int(batch.wire_length.sum())
            try:
                self._pipeline.process(batch, self._selection)
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
        for ledger in (self._pipeline.ledger, self.ledger):
            ledger.kernel_dropped += drops
            ledger.received += drops

    def reattach(self, blocks: int = MOST_BLOCKS) -> bool:
        """Open the ring on an interface that is there again; False if it went away at once."""
        try:
            self.attach(blocks)
        except UserError:
            return False
        return True
