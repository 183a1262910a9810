"""ERSPAN type II (draft-foschiano-erspan-03 §4.2), behind GRE 0x88BE with a sequence number.

     0                   1                   2                   3
    |  Ver  |          VLAN         | COS | En|T|    Session ID     |
    |      Reserved         |                  Index                |

Ver 1. En: 0 the frame had no tag, 1 ISL, 2 802.1Q (the tag was removed: VLAN and COS hold it),
3 the tag is still in the frame. T: the frame was cut. Receiver: with En 2 the tag is put back; ISL
is left alone. Type I is GRE 0x88BE without sequence number and without any header.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.ethernet import TPID_8021Q
from tunnelbridge.wire.layer import Clones, Kind, Layer, layer, refuse
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [("version_vlan", ">u2"), ("cos_en_t_session", ">u2"), ("reserved_index", ">u4")]
)
VERSION: Final = 1
REMOVED: Final = 2
PRESERVED: Final = 3
TRUNCATED: Final = 0x0400
MAX_SESSION: Final = 0x3FF
MAX_INDEX: Final = 0xFFFFF


def template(session: int, index: int) -> npt.NDArray[np.void]:
    """Return the header of a session (10 bits) and port index (20 bits)."""
    record = np.zeros(1, HEADER)
    record["version_vlan"] = VERSION << 12
    record["cos_en_t_session"] = session
    record["reserved_index"] = index
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Write VLAN and COS of the tag in the frame, En and T."""
    session = rows["cos_en_t_session"] & MAX_SESSION
    rows["version_vlan"] = (VERSION << 12) | (clones.tag & 0xFFF)
    rows["cos_en_t_session"] = session | cos_en_t(clones)


def cos_en_t(clones: Clones) -> Column:
    """Return the bits COS (of the tag), En (3: the tag is in the frame) and T."""
    en = np.where(clones.tag != 0, PRESERVED << 11, 0)
    return (clones.tag & 0xE000) | en | np.where(clones.truncated, TRUNCATED, 0)


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read type II headers; ``tag`` is one that was removed from the frame."""
    found = layer(start, end, Kind.ETHERNET)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.ERSPAN_SHORT)
    refuse(found, header["version_vlan"] >> 12 != VERSION, Reason.ERSPAN_VERSION)
    found.payload = start + HEADER.itemsize
    word = header["cos_en_t_session"].astype(np.int64)
    found.identifier = word & MAX_SESSION
    found.truncated = word & TRUNCATED != 0
    tag = (TPID_8021Q << 16) | (word & 0xE000) | (header["version_vlan"] & 0xFFF)
    found.tag = np.where((word >> 11) & 3 == REMOVED, tag, 0)
    return found
