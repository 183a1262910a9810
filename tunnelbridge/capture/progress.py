"""What both file formats hand to the reader: batches of one linktype, and how far they got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tunnelbridge.batch import Batch


class CaptureBatch(NamedTuple):
    """Packets in file order that all have one linktype (LINKTYPE_* of tcpdump.org, 16 bits)."""

    batch: Batch
    linktype: int


@dataclass(slots=True)
class Progress:
    """How far reading got: ``offset`` is a file offset; ``damage`` says why it ended early."""

    offset: int = 0
    damage: str | None = None

    def reach(self, offset: int) -> None:
        """Note that everything before ``offset`` has been read."""
        self.offset = offset

    def stop(self, offset: int, damage: str) -> None:
        """Note that reading ends at ``offset`` because of ``damage``."""
        self.offset = offset
        self.damage = damage
