"""VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe-12 §3), UDP 4790. Received, never sent.

     0                   1                   2                   3
    |R|R|Ver|I|P|B|O|       Reserved                |Next Protocol  |
    |                VXLAN Network Identifier (VNI) |   Reserved    |

Receiver: Ver must be 0; O marks OAM, which is not a copy of anything; Next Protocol counts only if P
is set, otherwise Ethernet follows.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Kind, Layer, layer, refuse, table
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [("flags", "u1"), ("reserved", ">u2"), ("next_protocol", "u1"), ("vni", ">u4")]
)
VERSION, NEXT_PROTOCOL, OAM = 0x30, 0x04, 0x01

_KINDS: Final = table(
    256, {1: Kind.IPV4, 2: Kind.IPV6, 3: Kind.ETHERNET, 4: Kind.NSH, 5: Kind.MPLS}
)


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read VXLAN-GPE headers; ``identifier`` is the VNI."""
    found = layer(start, end)
    header = load(memory, start, HEADER)
    flags = header["flags"]
    refuse(found, start + HEADER.itemsize > end, Reason.GPE_SHORT)
    refuse(found, flags & VERSION != 0, Reason.GPE_VERSION)
    refuse(found, flags & OAM != 0, Reason.GPE_OAM)
    found.payload = start + HEADER.itemsize
    next_kind = _KINDS[header["next_protocol"]]
    found.kind = np.where(flags & NEXT_PROTOCOL, next_kind, Kind.ETHERNET).astype(np.uint8)
    refuse(found, found.kind == Kind.NONE, Reason.GPE_PROTOCOL)
    found.identifier = header["vni"].astype(np.int64) >> 8
    return found
