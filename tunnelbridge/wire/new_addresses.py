"""Addresses that packets are to get: what policy decides and ``restore/readdress`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column

Addresses = npt.NDArray[np.uint64]
"""Shape (n, 2): high and low half; an IPv4 address is in the low one, and the high one is 0."""

LEAVE: Final = -1
"""Of a port or an identifier: it stays."""


@dataclass(slots=True)
class NewAddresses:
    """New addresses, ports and ICMP identifiers for some packets of a batch.

    ``rows`` (int64, shape (m,), ascending, none twice) are the packets; every other column has shape
    (m,), or (m, 2) for addresses, of the packet's own family. None leaves the field in all of them.
    """

    rows: Column
    source: Addresses | None = None
    destination: Addresses | None = None
    source_port: Column | None = None
    destination_port: Column | None = None
    identifier: Column | None = None
    """Of ICMP and ICMPv6 echo messages (RFC 792, RFC 4443 §4); other ICMP messages keep theirs."""

    def __len__(self) -> int:
        return len(self.rows)

    def follow(self, index: Column) -> NewAddresses:
        """Return what packets get that were made from these: packet *i* from packet ``index[i]``."""
        position = np.full(max(int(index.max(initial=-1)), int(self.rows.max(initial=-1))) + 1, -1)
        position[self.rows] = np.arange(len(self.rows))
        own = position[index]
        rows = np.flatnonzero(own >= 0)
        own = own[rows]

        def of_each(column: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
            return None if column is None else column[own]

        return NewAddresses(
            rows=rows,
            source=of_each(self.source),
            destination=of_each(self.destination),
            source_port=of_each(self.source_port),
            destination_port=of_each(self.destination_port),
            identifier=of_each(self.identifier),
        )
