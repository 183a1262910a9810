"""EtherIP (RFC 3378 §3), IP protocol 97: a version and a frame. Received only.

    | Version 3 |   Reserved 0   |   frame ...

Receiver: discard another version; the reserved bits are not looked at.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Kind, Layer, layer, refuse
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype([("version_reserved", ">u2")])
VERSION: Final = 3


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read EtherIP headers."""
    found = layer(start, end, Kind.ETHERNET)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.ETHERIP_SHORT)
    refuse(found, header["version_reserved"] >> 12 != VERSION, Reason.ETHERIP_VERSION)
    found.payload = start + HEADER.itemsize
    return found
