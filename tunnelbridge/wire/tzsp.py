"""TZSP (no RFC; Wireshark packet-tzsp.c), UDP 37008: MikroTik's sniffer and wireless sensors.

     0                   1                   2                   3
    |   Version 1   |      Type     |     Encapsulated protocol     |
    |  Tag 41 |  2  | original length |  Tag 1: end |  frame ...    |

Type 0 and 1 carry a frame, 4 is a keepalive. Tag 0 (padding) and 1 (end) are one octet; all others
have a length octet. Receiver: bound every tag by the datagram; protocol 1 is Ethernet, the only one
delivered (18, 119 and 127 are 802.11).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import UNKNOWN, Clones, Kind, Layer, layer, original_length, refuse
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype([("version", "u1"), ("type", "u1"), ("protocol", ">u2")])
TAG: Final = np.dtype([("tag", "u1"), ("length", "u1")])
LENGTH_TAG: Final = np.dtype([("length_tag", "u1"), ("length_length", "u1"), ("original", ">u2")])
END_TAG: Final = np.dtype([("end", "u1")])

ETHERNET: Final = 1
KEEPALIVE: Final = 4
PADDING, END, ORIGINAL_LENGTH = 0, 1, 41
MAX_TAGS: Final = 64


def template(with_length: bool = False) -> npt.NDArray[np.void]:
    """Return the header with its end tag; ``with_length`` adds tag 41 for cut frames."""
    fields = HEADER.descr + (LENGTH_TAG.descr if with_length else []) + END_TAG.descr
    record = np.zeros(1, np.dtype(fields))
    record["version"], record["protocol"], record["end"] = 1, ETHERNET, END
    if with_length:
        record["length_tag"], record["length_length"] = ORIGINAL_LENGTH, 2
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Write the original length, where the tunnel tells it."""
    if "original" in (rows.dtype.names or ()):
        rows["original"] = np.minimum(original_length(clones, beyond), 0xFFFF)


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read TZSP headers and tags."""
    found = layer(start, end, Kind.ETHERNET)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.TZSP_SHORT)
    refuse(found, header["version"] != 1, Reason.TZSP_VERSION)
    refuse(found, header["type"] == KEEPALIVE, Reason.TZSP_KEEPALIVE)
    refuse(found, header["type"] > 1, Reason.TZSP_TYPE)
    refuse(found, header["protocol"] != ETHERNET, Reason.TZSP_PROTOCOL)
    found.payload = start + HEADER.itemsize
    found.original_length = np.full(len(start), UNKNOWN, np.int64)
    _read_tags(memory, found, found.original_length)
    return found


def _read_tags(memory: Octets, found: Layer, original_length: Column) -> None:
    """Pass tags up to the end tag, in place."""
    walking = np.flatnonzero(found.reason == 0)
    for _ in range(MAX_TAGS):
        if not walking.size:
            return
        at = found.payload[walking]
        inside = at < found.end[walking]
        found.reason[walking[~inside]] = Reason.TZSP_TAGS
        walking, at = walking[inside], at[inside]
        tag = memory[at]
        length = memory[np.minimum(at + 1, memory.size - 1)].astype(np.int64)
        octets = np.where(tag <= END, 1, 2 + length)
        beyond = at + octets > found.end[walking]
        found.reason[walking[beyond]] = Reason.TZSP_TAGS
        told = (tag == ORIGINAL_LENGTH) & (length == 2) & ~beyond
        original = load(memory, at[told], LENGTH_TAG)["original"]
        original_length[walking[told]] = original
        found.payload[walking] += octets
        walking = walking[(tag != END) & ~beyond]
    found.reason[walking] = Reason.TZSP_TAGS
