"""PPP in GRE version 1 (RFC 1661 §2, RFC 2637): the payload of PPTP. Received only.

    | FF 03 (may be left out) | protocol: 16 bits, or 8 where its first octet is odd | packet ...

Receiver: only IPv4 (0x0021) and IPv6 (0x0057) are copies; the rest is control, compressed or
encrypted.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Kind, Layer, layer, refuse, table
from tunnelbridge.wire.octets import fits, load
from tunnelbridge.wire.reasons import Reason

OCTET: Final = np.dtype([("value", "u1")])
WORD: Final = np.dtype([("value", ">u2")])
ADDRESS_AND_CONTROL: Final = 0xFF03
_KINDS: Final = table(0x10000, {0x0021: Kind.IPV4, 0x0057: Kind.IPV6})


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read PPP headers, compressed or not."""
    found = layer(start, end)
    first = load(memory, start, WORD)["value"]
    found.payload = start + np.where(fits(start, end, WORD) & (first == ADDRESS_AND_CONTROL), 2, 0)
    octet = load(memory, found.payload, OCTET)["value"].astype(np.int64)
    compressed = octet & 1 != 0
    word = load(memory, found.payload, WORD)["value"].astype(np.int64)
    found.payload += np.where(compressed, 1, 2)
    refuse(found, found.payload > end, Reason.PPP_SHORT)
    found.kind = _KINDS[np.where(compressed, octet, word)]
    refuse(found, found.kind == Kind.NONE, Reason.PPP_PROTOCOL)
    return found
