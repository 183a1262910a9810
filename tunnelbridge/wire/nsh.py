"""NSH, the network service header (RFC 8300 §2.2), in VXLAN-GPE, GRE and GENEVE. Received only.

     0                   1                   2                   3
    |Ver|O|U|    TTL    |   Length  |U|U|U|U|MD Type| Next Protocol |
    |          Service Path Identifier              | Service Index |
    |                Context headers, Length - 2 words              |

Receiver: Ver must be 0; Length counts words of the whole header.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Kind, Layer, layer, refuse, table
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [("version_ttl_length", ">u2"), ("md_type", "u1"), ("next_protocol", "u1"), ("path", ">u4")]
)
_KINDS: Final = table(256, {1: Kind.IPV4, 2: Kind.IPV6, 3: Kind.ETHERNET, 5: Kind.MPLS})


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read NSH; the service path is not kept, the tunnel around it names the stream."""
    found = layer(start, end)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.NSH_SHORT)
    first = header["version_ttl_length"].astype(np.int64)
    refuse(found, first >> 14 != 0, Reason.NSH_VERSION)
    octets = (first & 0x3F) * 4
    found.payload = start + octets
    refuse(found, (octets < HEADER.itemsize) | (found.payload > end), Reason.NSH_SHORT)
    found.kind = _KINDS[header["next_protocol"]]
    refuse(found, found.kind == Kind.NONE, Reason.NSH_PROTOCOL)
    return found
