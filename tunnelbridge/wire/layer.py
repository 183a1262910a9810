"""What decoding one header of many packets tells, and what sending asks of a header.

``Kind`` names a header to come; ``Layer`` is the outcome of one ``decode``; ``Clones`` is what
``patch`` may write into a header.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column, Flags
from tunnelbridge.wire.reasons import Reason

Codes = npt.NDArray[np.uint8]
"""Shape (n,): a :class:`Kind` or :class:`~.reasons.Reason` per packet."""


class Kind(IntEnum):
    """A header that can come next, and, for the last header of a tunnel, the encapsulation's name."""

    NONE = 0
    """Nothing of interest follows: what was found so far is the innermost."""
    ETHERNET = auto()
    IPV4 = auto()
    IPV6 = auto()
    ARP = auto()
    ICMP = auto()
    UDP = auto()
    GRE = auto()
    ERSPAN2 = auto()
    ERSPAN3 = auto()
    VXLAN = auto()
    VXLAN_GPE = auto()
    GENEVE = auto()
    TZSP = auto()
    JUNIPER = auto()
    MPLS = auto()
    ETHERIP = auto()
    NSH = auto()
    PPP = auto()
    # Names of encapsulations that have no header of their own.
    GRE_IP = auto()
    ERSPAN1 = auto()
    IPIP = auto()

    @property
    def slug(self) -> str:
        """Return the name users write and read: ``vxlan-gpe``."""
        return self.name.lower().replace("_", "-")


PAYLOADS: Final = (Kind.ETHERNET, Kind.IPV4, Kind.IPV6, Kind.ARP)
"""What a tunnel can carry and a collector can deliver."""

UNKNOWN: Final = -1


def table(size: int, entries: dict[int, Kind]) -> Codes:
    """Return a look-up table from a protocol number to a Kind."""
    kinds = np.zeros(size, np.uint8)
    for number, kind in entries.items():
        kinds[number] = kind
    return kinds


@dataclass(slots=True)
class Layer:
    """One decoded header of n packets; all columns of shape (n,).

    ``payload`` and ``end`` bound what follows the header, ``kind`` says what that is, ``reason`` is
    0 for a good header (otherwise the other columns mean nothing). The rest is what only some
    headers tell, None where this one does not; in a column, -1 means that this packet does not say.
    """

    payload: Column
    end: Column
    kind: Codes
    reason: Codes
    encapsulation: Codes | None = None
    identifier: Column | None = None
    """VNI, GRE key, ERSPAN session, MPLS label."""
    sequence: Column | None = None
    direction: Column | None = None
    tag: Column | None = None
    """TPID << 16 | TCI of a tag that the mirror source took out of the frame; 0 for none."""
    original_length: Column | None = None
    """Octets of the frame before the source cut it."""
    truncated: Flags | None = None
    clock: Column | None = None
    """The source's time of the frame, nanoseconds modulo ``clock_period`` (:mod:`~.clock`)."""
    clock_period: Column | None = None
    claimed_end: Column | None = None
    """Where the packet ends by its own IP length, which can lie beyond what is present; of refused
    headers too, if only they are whole: a cut packet is told from a short one by it."""
    fragment: Column | None = None
    """Identification of an IP fragment, -1 for whole packets; None where all are whole."""
    first_fragment: Flags | None = None


def layer(start: Column, end: Column, kind: Kind = Kind.NONE) -> Layer:
    """Return an empty good layer to fill in."""
    return Layer(
        payload=start,
        end=end,
        kind=np.full(len(start), kind, np.uint8),
        reason=np.zeros(len(start), np.uint8),
    )


def refuse(target: Layer, where: Flags, reason: Reason) -> None:
    """Refuse the packets in ``where`` that were good so far: the first reason stays."""
    if where.any():
        target.reason[where & (target.reason == 0)] = reason


@dataclass(slots=True)
class Clones:
    """What the headers of a batch of clones are made from; columns of shape (n,).

    ``batch`` holds the inner frames as they will be sent (already rewritten and cut).
    """

    batch: Batch
    length: Column
    entropy: Column
    """The direction-symmetric flow hash, 16 bits."""
    tag: Column
    """TPID << 16 | TCI of the frame's first VLAN tag, 0 for none."""
    truncated: Flags
    sequence: Column
    ethertype: Column
    """Of what the tunnel carries, for tunnels of bare IP."""


def original_length(clones: Clones, beyond: Column) -> Column:
    """Return the frames' lengths before anything was cut, for the innermost header.

    ``beyond`` counts the octets behind that header: the clone, and in front of it what replaces the
    frame's first octets, which ``clones`` no longer has.
    """
    return clones.batch.wire_length + beyond - clones.length
