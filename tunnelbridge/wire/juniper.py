"""The Juniper header of Contrail and CN2 mirroring (tf-vrouter vr_mirror.c), UDP 8099.

    | type (8) | length (8) | value ... |   repeated, then 255 0 and the Ethernet frame

Types: 1 capture host (IPv4), 2 action and direction (bit 30: ingress), 3 source and 4 destination
virtual network by name, 255 end. Interface mirrors send only 3 (received) or only 4 (sent), so the
one that is there tells the direction. Before release 3.1.1 a 16-octet pcap record header in network
order came first: told by its first octet and by its length fitting. Receiver: bound every value by
the datagram and pass types it does not know.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import INBOUND, OUTBOUND, Column, Flags, Octets
from tunnelbridge.wire.clock import PERIOD_SECONDS
from tunnelbridge.wire.layer import UNKNOWN, Clones, Kind, Layer, layer
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

TLV: Final = np.dtype([("type", "u1"), ("length", "u1")])
FLAGS: Final = np.dtype([("type", "u1"), ("length", "u1"), ("flags", ">u4")])
PCAP_RECORD: Final = np.dtype(
    [("seconds", ">u4"), ("microseconds", ">u4"), ("captured", ">u4"), ("original", ">u4")]
)
HOST, ACTION, SOURCE_VN, DESTINATION_VN, END = 1, 2, 3, 4, 255
INGRESS: Final = 0x40000000
PASS_AND_MIRROR: Final = 0x000000A0
MAX_TLVS: Final = 16


def template(
    host: bytes | None = None, source_vn: str = "", destination_vn: str = ""
) -> npt.NDArray[np.void]:
    """Return the TLVs; ``host`` is an IPv4 address as four octets, names have up to 255 octets."""
    fields: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    if host is not None:
        fields += [("host_tl", ">u2"), ("host", "V4")]
        values |= {"host_tl": (HOST << 8) | 4, "host": host}
    fields += [("action_tl", ">u2"), ("action", ">u4")]
    values |= {"action_tl": (ACTION << 8) | 4, "action": PASS_AND_MIRROR}
    for name, code, text in (
        ("source", SOURCE_VN, source_vn.encode()),
        ("destination", DESTINATION_VN, destination_vn.encode()),
    ):
        if text:
            fields += [(f"{name}_tl", ">u2"), (name, f"V{len(text)}")]
            values |= {f"{name}_tl": (code << 8) | len(text), name: text}
    fields += [("end", ">u2")]
    values |= {"end": END << 8}
    record = np.zeros(1, np.dtype(fields))
    for name, value in values.items():
        record[name] = np.void(value) if isinstance(value, bytes) else value
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Write the direction."""
    ingress = np.where(clones.batch.direction == INBOUND, INGRESS, 0)
    rows["action"] = PASS_AND_MIRROR | ingress


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read the TLVs up to their end."""
    found = layer(start, end, Kind.ETHERNET)
    found.payload = start.copy()
    _skip_old_records(memory, found)
    found.direction = np.full(len(start), UNKNOWN, np.int64)
    names = np.zeros(len(start), np.uint8)
    walking = np.arange(len(start))
    for _ in range(MAX_TLVS):
        if not walking.size:
            break
        at = found.payload[walking]
        tlv = load(memory, at, TLV)
        octets = TLV.itemsize + tlv["length"].astype(np.int64)
        beyond = at + octets > found.end[walking]
        found.reason[walking[beyond]] = Reason.JUNIPER_TLVS
        action = (tlv["type"] == ACTION) & (tlv["length"] == 4) & ~beyond
        flags = load(memory, at[action], FLAGS)["flags"]
        found.direction[walking[action]] = np.where(flags & INGRESS, INBOUND, OUTBOUND)
        names[walking] |= np.where(tlv["type"] == SOURCE_VN, 1, 0).astype(np.uint8)
        names[walking] |= np.where(tlv["type"] == DESTINATION_VN, 2, 0).astype(np.uint8)
        found.payload[walking] += octets
        walking = walking[(tlv["type"] != END) & ~beyond]
    found.reason[walking] = Reason.JUNIPER_TLVS
    untold = found.direction == UNKNOWN
    found.direction[untold & (names == 1)] = INBOUND
    found.direction[untold & (names == 2)] = OUTBOUND
    return found


def _skip_old_records(memory: Octets, found: Layer) -> None:
    """Read the pcap record header of releases before 3.1.1 where it stands in front of the TLVs."""
    record = load(memory, found.payload, PCAP_RECORD)
    first = record["seconds"] >> 24
    present = found.end - found.payload - PCAP_RECORD.itemsize
    told: Flags = (present >= 0) & (record["captured"] == present)
    told &= (first > DESTINATION_VN) & (first != END)
    if told.any():
        time = record["seconds"].astype(np.int64) * 1_000_000_000
        time += record["microseconds"].astype(np.int64) * 1000
        found.clock = np.where(told, time, UNKNOWN)
        found.clock_period = np.where(told, PERIOD_SECONDS, UNKNOWN)
        found.payload[told] += PCAP_RECORD.itemsize
