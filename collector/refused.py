"""Who sends what is refused: a bounded table for people who wonder why nothing arrives."""

from __future__ import annotations

import ipaddress
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from collector.grouping import groups, keys
from collector.ledger import RefusedSender
from tunnelbridge.batch import Column
from tunnelbridge.wire.layer import Codes, Kind
from tunnelbridge.wire.reasons import Reason

MOST: Final = 1024
AT_ONCE: Final = 64
"""Senders looked at per call: a flood of forged sources must not cost more than what is wanted."""


class RefusedSenders:
    """The latest (outer source, encapsulation, reason), at most :data:`MOST` of them.

    When there is no room the one that was not seen for longest is forgotten. ``forgotten`` counts
    the packets of all who are not in the table, so that the sum stays exact.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        self._senders: dict[bytes, RefusedSender] = {}

    def take(
        self,
        source: npt.NDArray[np.uint8],
        encapsulation: Codes,
        reason: Codes,
        timestamp: Column,
    ) -> None:
        """Account for refused datagrams; ``source`` (k, 16), the rest (k,).

        ``encapsulation`` is NONE where it is not known; ``timestamp`` is the arrival.
        """
        left = len(source)
        for key, places in islice(groups(keys(source, encapsulation, reason)), AT_ONCE):
            seen = timestamp[places]
            left -= len(seen)
            name = key.tobytes()
            sender = self._senders.pop(name, None) or _sender(key, int(seen[0]))
            sender.packets += len(seen)
            sender.last_seen = int(seen[-1])
            self._senders[name] = sender  # now the latest
        self.forgotten += left
        while len(self._senders) > MOST:
            oldest = next(iter(self._senders))
            self.forgotten += self._senders.pop(oldest).packets

    def ledgers(self) -> list[RefusedSender]:
        """Return the senders, the latest last."""
        return list(self._senders.values())


def _sender(key: Any, first_seen: int) -> RefusedSender:
    address = ipaddress.IPv6Address(key.tobytes()[:16])
    encapsulation = int(key["first"])
    return RefusedSender(
        str(address.ipv4_mapped or address),
        Kind(encapsulation).slug if encapsulation else None,
        Reason(int(key["second"])).slug,
        first_seen=first_seen,
    )
