"""ERSPAN type III (draft-foschiano-erspan-03 §4.3), behind GRE 0x22EB or, from old Linux, 0x88BE.

     0                   1                   2                   3
    |  Ver  |          VLAN         | COS |BSO|T|     Session ID    |
    |                          Timestamp                            |
    |             SGT               |P|    FT   |   Hw ID   |D|Gra|O|
    |  Platf ID |               Platform specific info (O=1)        |
    |                  Platform specific info                       |

Ver 2. BSO: 0 good or unknown. T: the frame was cut. FT: 0 Ethernet, 2 IP. D: 0 ingress, 1 egress.
Gra: 0 100 µs, 1 100 ns, 2 IEEE 1588 (nanoseconds here, seconds in the platform sub-header), 3 the
sender's own. Receiver: the sub-header is there if O is set; one sender (FT 7) puts it there without
saying so, which a plausible EtherType gives away. P, BSO and Gra do not tell anything apart in the
field (shared facts, wire §2); senders that write En into BSO are not believed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import INBOUND, OUTBOUND, Column, Octets
from tunnelbridge.wire.clock import PERIOD_SECONDS
from tunnelbridge.wire.erspan2 import MAX_SESSION, TRUNCATED
from tunnelbridge.wire.ethernet import HEADER as ETHERNET
from tunnelbridge.wire.layer import UNKNOWN, Clones, Kind, Layer, layer, refuse
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.plausible import is_frame, is_llc_frame
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [
        ("version_vlan", ">u2"),
        ("cos_bso_t_session", ">u2"),
        ("timestamp", ">u4"),
        ("sgt", ">u2"),
        ("flags", ">u2"),
    ]
)
SUB_HEADER: Final = np.dtype([("platform_switch", ">u2"), ("port", ">u2"), ("seconds", ">u4")])

VERSION: Final = 2
P_ETHERNET: Final = 0x8000
HWID_SHIFT: Final = 4
EGRESS: Final = 0x0008
OPTIONAL: Final = 0x0001
FRAME_TYPE: Final = 0x7C00
FT_IP: Final = 2
PLATFORM_1588: Final = 5
MAX_HWID: Final = 0x3F

GRANULARITIES: Final = {"100us": 0, "100ns": 1, "1588": 2}
_NANOSECONDS: Final = {0: 100_000, 1: 100}
_UNITS: Final = np.array([100_000, 100, 1, 0])
"""Nanoseconds of one count, by Gra; 0 where nobody but the sender knows."""
_PLATFORMS_1588: Final = (5, 6)


def template(session: int, hwid: int, granularity: str) -> npt.NDArray[np.void]:
    """Return the header; ``granularity`` 1588 brings the sub-header that holds the seconds."""
    gra = GRANULARITIES[granularity]
    record = np.zeros(1, np.dtype(HEADER.descr + (SUB_HEADER.descr if gra == 2 else [])))
    record["version_vlan"] = VERSION << 12
    record["cos_bso_t_session"] = session
    record["flags"] = P_ETHERNET | (hwid << HWID_SHIFT) | (gra << 1)
    if gra == 2:
        record["flags"] |= OPTIONAL
        record["platform_switch"] = PLATFORM_1588 << 10
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Write VLAN, COS and T, the capture time in the tunnel's granularity, and the direction.

    BSO stays 0: the frame was good, and the same two bits never mean En here.
    """
    session = rows["cos_bso_t_session"] & MAX_SESSION
    rows["version_vlan"] = (VERSION << 12) | (clones.tag & 0xFFF)
    truncated = np.where(clones.truncated, TRUNCATED, 0)
    rows["cos_bso_t_session"] = session | (clones.tag & 0xE000) | truncated
    egress = np.where(clones.batch.direction == OUTBOUND, EGRESS, 0)
    rows["flags"] = (rows["flags"] & ~np.uint16(EGRESS)) | egress.astype(np.uint16)
    now = clones.batch.timestamp
    if "seconds" in (rows.dtype.names or ()):
        rows["timestamp"] = now % 1_000_000_000
        rows["seconds"] = (now // 1_000_000_000) & 0xFFFFFFFF
    elif len(rows):
        gra = (int(rows["flags"][0]) >> 1) & 3
        rows["timestamp"] = (now // _NANOSECONDS[gra]) & 0xFFFFFFFF


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read type III headers; ``clock`` is the timestamp, by its granularity.

    With Gra 2 the seconds come from a sub-header of platform 5 or 6; without one the 32 bits are
    taken for a count of nanoseconds.
    """
    found = layer(start, end, Kind.ETHERNET)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.ERSPAN_SHORT)
    refuse(found, header["version_vlan"] >> 12 != VERSION, Reason.ERSPAN_VERSION)
    flags = header["flags"].astype(np.int64)
    found.payload = start + HEADER.itemsize + np.where(flags & OPTIONAL, SUB_HEADER.itemsize, 0)
    refuse(found, found.payload > end, Reason.ERSPAN_SHORT)
    frame_type = (flags & FRAME_TYPE) >> 10
    _find_unannounced(memory, found, (frame_type != 0) & (frame_type != FT_IP))
    _tell_ip_version(memory, found, np.flatnonzero((frame_type == FT_IP) & (found.reason == 0)))
    found.identifier = header["cos_bso_t_session"].astype(np.int64) & MAX_SESSION
    found.truncated = header["cos_bso_t_session"] & TRUNCATED != 0
    found.direction = np.where(flags & EGRESS, OUTBOUND, INBOUND)
    _read_clock(memory, found, start, header["timestamp"].astype(np.int64), flags)
    return found


def _read_clock(
    memory: Octets, found: Layer, start: Column, count: Column, flags: npt.NDArray[np.int64]
) -> None:
    unit = _UNITS[(flags >> 1) & 3]
    found.clock = np.where(unit > 0, count * unit, UNKNOWN)
    found.clock_period = np.where(unit > 0, unit << 32, UNKNOWN)
    told = np.flatnonzero((unit == 1) & (flags & OPTIONAL != 0) & (found.reason == 0))
    if not told.size:
        return
    sub_header = load(memory, start[told] + HEADER.itemsize, SUB_HEADER)
    whole = np.isin(sub_header["platform_switch"] >> 10, _PLATFORMS_1588)
    told, sub_header = told[whole], sub_header[whole]
    found.clock[told] += sub_header["seconds"].astype(np.int64) * 1_000_000_000
    found.clock_period[told] = PERIOD_SECONDS


def _find_unannounced(memory: Octets, found: Layer, odd_type: npt.NDArray[np.bool_]) -> None:
    """For frame types nobody defined, look for the frame here and eight octets on."""
    odd = np.flatnonzero(odd_type & (found.reason == 0))
    if not odd.size:
        return
    here, there = found.payload[odd], found.payload[odd] + SUB_HEADER.itemsize
    end = found.end[odd]
    at = np.full(len(odd), UNKNOWN, np.int64)
    for looks_like in (is_frame, is_llc_frame):
        for place in (here, there):
            at = np.where((at == UNKNOWN) & looks_like(memory, place, end), place, at)
    too_short_to_tell = (at == UNKNOWN) & (here + ETHERNET.itemsize > end)
    at = np.where(too_short_to_tell, here, at)
    found.reason[odd[at == UNKNOWN]] = Reason.ERSPAN_FRAME_TYPE
    found.payload[odd] = at


def _tell_ip_version(memory: Octets, found: Layer, bare: npt.NDArray[np.int64]) -> None:
    if not bare.size:
        return
    version = memory[np.minimum(found.payload[bare], memory.size - 1)] >> 4
    found.kind[bare] = np.where(version == 6, Kind.IPV6, Kind.IPV4)
