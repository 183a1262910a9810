"""UDP (RFC 768), dispatched by destination port.

     0                   1                   2                   3
    |          Source Port          |       Destination Port        |
    |             Length            |            Checksum           |

Receiver: a Length below 8 or beyond the datagram is cut to what is there (senders with offload
leave it wrong); the checksum is never a reason to lose a copy: zero is normal for tunnels, and
offload leaves bad ones behind. Sender: RFC 7348 §5 and RFC 8926 §3.3 ask for an entropy of the
inner flow in 49152–65535 as source port; ours is equal for both directions of a flow.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Clones, Codes, Kind, Layer, layer, refuse, table
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [("source", ">u2"), ("destination", ">u2"), ("length", ">u2"), ("checksum", ">u2")]
)

PORTS: Final[dict[int, Kind]] = {
    4789: Kind.VXLAN,
    8472: Kind.VXLAN,
    4790: Kind.VXLAN_GPE,
    6081: Kind.GENEVE,
    37008: Kind.TZSP,
    8099: Kind.JUNIPER,
    6635: Kind.MPLS,
    4754: Kind.GRE,
}
"""The ports that tunnels listen on by default (IANA; 8472 Linux and flannel; 8099 Contrail)."""

FIRST_SOURCE_PORT: Final = 49152
SOURCE_PORTS: Final = 16384


def port_table(ports: dict[int, Kind]) -> Codes:
    """Return the look-up table, shape (65536,), that :func:`decode` takes."""
    return table(0x10000, ports)


def template(destination: int) -> npt.NDArray[np.void]:
    """Return the header to ``destination``, checksum 0 (allowed for tunnels: RFC 6935, 7348 §5)."""
    record = np.zeros(1, HEADER)
    record["destination"] = destination
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Write the source port from the flow's entropy, and the length."""
    rows["source"] = FIRST_SOURCE_PORT + clones.entropy % SOURCE_PORTS
    rows["length"] = beyond + HEADER.itemsize


def decode(memory: Octets, start: Column, end: Column, ports: Codes) -> Layer:
    """Read UDP headers; ``kind`` is what listens on the destination port."""
    found = layer(start, end)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.UDP_SHORT)
    length = header["length"].astype(np.int64)
    told = (length >= HEADER.itemsize) & (start + length <= end)
    found.payload = start + HEADER.itemsize
    found.end = np.where(told, start + length, end)
    found.kind = ports[header["destination"]]
    return found
