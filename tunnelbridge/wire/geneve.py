"""GENEVE (RFC 8926 §3.4, §3.5), UDP 6081.

     0                   1                   2                   3
    |Ver|  Opt Len  |O|C|    Rsvd.  |          Protocol Type        |
    |        Virtual Network Identifier (VNI)       |    Reserved   |
    |          Option Class         |      Type     |R|R|R| Length  |
    |                      Option data, Length words                |

Receiver: Ver must be 0; O is control, not a copy; the options must add up to Opt Len. An endpoint
drops unknown critical options; a collector observes, so it decodes all the same. Protocol 0x6558 is
Ethernet; clouds send bare IP (Google, Amazon's load balancer). Options that tell something: Google
0x0132 type 1 (bit 0 of its data: egress), cPacket 0x0164 type 0 (original length and capture time).
The latter, which Wireshark decodes, is also what we send where a tunnel may cut frames.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import INBOUND, OUTBOUND, Column, Octets
from tunnelbridge.wire.clock import PERIOD_SECONDS
from tunnelbridge.wire.layer import (
    UNKNOWN,
    Clones,
    Kind,
    Layer,
    layer,
    original_length,
    refuse,
    table,
)
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [("version_length", "u1"), ("flags", "u1"), ("protocol", ">u2"), ("vni", ">u4")]
)
OPTION: Final = np.dtype([("class", ">u2"), ("type", "u1"), ("length", "u1")])
GOOGLE_OPTION: Final = np.dtype([*OPTION.descr, ("network", ">u4")])
LENGTH_OPTION: Final = np.dtype(
    [
        ("class", ">u2"),
        ("type", "u1"),
        ("words", "u1"),
        ("option_sequence", ">u4"),
        ("original_length", ">u2"),
        ("option_reserved", "u1"),
        ("option_version", "u1"),
        ("seconds_high", ">u2"),
        ("seconds", ">u4"),
        ("nanoseconds", ">u4"),
        ("fraction", ">u2"),
        ("device", ">u2"),
        ("port", ">u2"),
    ]
)
TEB: Final = 0x6558
CONTROL: Final = 0x80
GOOGLE: Final = 0x0132
CPACKET: Final = 0x0164
MAX_OPTIONS: Final = 64

_KINDS: Final = table(
    0x10000,
    {
        TEB: Kind.ETHERNET,
        0x0800: Kind.IPV4,
        0x86DD: Kind.IPV6,
        0x0806: Kind.ARP,
        0x894F: Kind.NSH,
        0x8847: Kind.MPLS,
    },
)


def template(vni: int, with_length: bool = False) -> npt.NDArray[np.void]:
    """Return the header of a VNI (24 bits), with the option that tells the original length."""
    record = np.zeros(1, np.dtype(HEADER.descr + (LENGTH_OPTION.descr if with_length else [])))
    record["protocol"], record["vni"] = TEB, vni << 8
    if with_length:
        record["version_length"] = LENGTH_OPTION.itemsize // 4
        record["class"] = CPACKET
        record["words"] = LENGTH_OPTION.itemsize // 4 - 1
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Write sequence, original length and capture time into the option, where there is one."""
    if "original_length" not in (rows.dtype.names or ()):
        return
    rows["option_sequence"] = clones.sequence & 0xFFFFFFFF
    rows["original_length"] = np.minimum(original_length(clones, beyond), 0xFFFF)
    rows["seconds"] = (clones.batch.timestamp // 1_000_000_000) & 0xFFFFFFFF
    rows["nanoseconds"] = clones.batch.timestamp % 1_000_000_000


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read GENEVE headers and their options; ``identifier`` is the VNI."""
    found = layer(start, end)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.GENEVE_SHORT)
    refuse(found, header["version_length"] >> 6 != 0, Reason.GENEVE_VERSION)
    refuse(found, header["flags"] & CONTROL != 0, Reason.GENEVE_CONTROL)
    options = (header["version_length"] & 0x3F).astype(np.int64) * 4
    found.payload = start + HEADER.itemsize + options
    refuse(found, found.payload > end, Reason.GENEVE_SHORT)
    found.kind = _KINDS[header["protocol"]]
    refuse(found, found.kind == Kind.NONE, Reason.GENEVE_PROTOCOL)
    found.identifier = header["vni"].astype(np.int64) >> 8
    _read_options(memory, found, start + HEADER.itemsize, np.flatnonzero(options > 0))
    return found


def _read_options(
    memory: Octets, found: Layer, position: Column, walking: npt.NDArray[np.int64]
) -> None:
    """Check that options add up, and keep what two of them tell, in place."""
    walking = walking[found.reason[walking] == 0]
    if not walking.size:
        return
    found.direction = np.full(len(position), UNKNOWN, np.int64)
    found.original_length = np.full(len(position), UNKNOWN, np.int64)
    for _ in range(MAX_OPTIONS):
        at = position[walking]
        option = load(memory, at, OPTION)
        octets = OPTION.itemsize + (option["length"] & 0x1F).astype(np.int64) * 4
        overrun = at + octets > found.payload[walking]
        found.reason[walking[overrun]] = Reason.GENEVE_OPTIONS
        google = (option["class"] == GOOGLE) & (option["type"] == 1) & (octets >= 8) & ~overrun
        network = load(memory, at[google], GOOGLE_OPTION)["network"]
        found.direction[walking[google]] = np.where(network & 1, OUTBOUND, INBOUND)
        length = (option["class"] == CPACKET) & (option["type"] == 0) & (octets == 28) & ~overrun
        if length.any():
            _read_cpacket(found, walking[length], load(memory, at[length], LENGTH_OPTION))
        position[walking] += octets
        walking = walking[~overrun & (position[walking] < found.payload[walking])]
        if not walking.size:
            return


def _read_cpacket(found: Layer, where: npt.NDArray[np.int64], option: npt.NDArray[np.void]) -> None:
    """Keep the original length and the capture time, in place; seconds 0 are no time."""
    if found.original_length is None:
        found.original_length = np.full(len(found.reason), UNKNOWN, np.int64)
    found.original_length[where] = option["original_length"]
    if found.clock is None or found.clock_period is None:
        found.clock = np.full(len(found.reason), UNKNOWN, np.int64)
        found.clock_period = np.full(len(found.reason), UNKNOWN, np.int64)
    told = option["seconds"] > 0
    time = option["seconds"].astype(np.int64) * 1_000_000_000 + option["nanoseconds"]
    found.clock[where] = np.where(told, time, UNKNOWN)
    found.clock_period[where] = np.where(told, PERIOD_SECONDS, UNKNOWN)
