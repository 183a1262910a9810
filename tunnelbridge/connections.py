"""Source-NATed connections: what ``linux/conntrack`` tells and ``clone/nat`` keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Connections = npt.NDArray[np.void]
"""Shape (n,), of dtype :data:`CONNECTION`."""

ECHO_SERVICE: Final = 0x10000
"""The port of the end that answers echo requests; the port of the end that asks is the identifier."""
NO_PORT: Final = -1
"""Of protocols without ports."""
CONNECTION: Final = np.dtype(
    [
        ("family", "=i4"),
        ("protocol", "=i4"),
        ("server_port", "=i4"),
        ("nat_port", "=i4"),
        ("client_port", "=i4"),
        ("server", "=u8", 2),
        ("nat", "=u8", 2),
        ("client", "=u8", 2),
    ]
)
"""A source-NATed connection: S:s, P:p and C:c. Addresses are high and low half, IPv4 in the low."""


@dataclass(slots=True)
class Changes:
    """What became of connections since one looked last.

    ``known`` came first; ``gone`` may name one of them. ``complete``: everything that exists has been
    told, and what was not since that began is gone too. ``restarted``: changes were missed, and behind
    these everything is told once more.
    """

    known: Connections
    gone: Connections
    complete: bool = False
    restarted: bool = False
