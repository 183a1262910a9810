"""VXLAN (RFC 7348 §5), UDP 4789 and, from Linux and flannel, 8472.

     0                   1                   2                   3
    |R|R|R|R|I|R|R|R|            Reserved                           |
    |                VXLAN Network Identifier (VNI) |   Reserved    |

Sender: I is 1, all reserved bits 0 (Suricata refuses others). Receiver: the I flag must be set;
reserved bits are ignored (the group policy extension and Cisco ACI use them).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Clones, Kind, Layer, layer, refuse
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype([("flags", ">u4"), ("vni", ">u4")])
VALID_VNI: Final = 0x08000000
MAX_VNI: Final = 0xFFFFFF


def template(vni: int) -> npt.NDArray[np.void]:
    """Return the header of a VNI (24 bits)."""
    record = np.zeros(1, HEADER)
    record["flags"], record["vni"] = VALID_VNI, vni << 8
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Nothing varies."""


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read VXLAN headers; ``identifier`` is the VNI."""
    found = layer(start, end, Kind.ETHERNET)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.VXLAN_SHORT)
    refuse(found, header["flags"] & VALID_VNI == 0, Reason.VXLAN_NO_VNI)
    found.payload = start + HEADER.itemsize
    found.identifier = header["vni"].astype(np.int64) >> 8
    return found
