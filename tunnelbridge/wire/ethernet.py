"""Ethernet II with any stack of VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

     0                   1                   2                   3
    |                     destination MAC address ...               |
    |  ...                          |      source MAC address ...   |
    |                     ...                                       |
    | EtherType, or TPID 8100 88A8 9100 9200 then TCI and EtherType |

Receiver: skip any stack of tags; an EtherType below 0x0600 is a length (LLC follows).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Kind, Layer, layer, refuse, table
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype([("destination", "V6"), ("source", "V6"), ("type", ">u2")])
TAG: Final = np.dtype([("tci", ">u2"), ("type", ">u2")])
TPID_8021Q: Final = 0x8100
TAG_TYPES: Final = (TPID_8021Q, 0x88A8, 0x9100, 0x9200)
MAX_TAGS: Final = 8
MAX_PADDING: Final = 46

IPV4: Final = 0x0800
IPV6: Final = 0x86DD
ARP: Final = 0x0806

_IS_TAG: Final = np.isin(np.arange(0x10000), TAG_TYPES)
_KINDS: Final = table(0x10000, {IPV4: Kind.IPV4, IPV6: Kind.IPV6})


class EtherTypes(NamedTuple):
    """Where and what a frame's payload is; columns of shape (n,)."""

    payload: Column
    ethertype: Column
    tag: Column
    """TPID << 16 | TCI of the first tag, 0 for none."""


def ethertypes(memory: Octets, start: Column, end: Column) -> EtherTypes:
    """Find each frame's EtherType behind its tags; frames are at least 14 octets long."""
    ethertype = load(memory, start, HEADER)["type"].astype(np.int64)
    payload = start + HEADER.itemsize
    tag = np.zeros(len(start), np.int64)
    tagged = np.flatnonzero(_IS_TAG[ethertype])
    for depth in range(MAX_TAGS):
        tagged = tagged[payload[tagged] + TAG.itemsize <= end[tagged]]
        if not tagged.size:
            break
        record = load(memory, payload[tagged], TAG)
        if depth == 0:
            tag[tagged] = (ethertype[tagged] << 16) | record["tci"]
        ethertype[tagged] = record["type"]
        payload[tagged] += TAG.itemsize
        tagged = tagged[_IS_TAG[ethertype[tagged]]]
    return EtherTypes(payload, ethertype, tag)


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read the MAC header and its tags; ``kind`` is the IP version or NONE."""
    found = layer(start, end)
    refuse(found, start + HEADER.itemsize > end, Reason.FRAME_SHORT)
    inside = ethertypes(memory, start, end)
    found.payload = inside.payload
    found.kind = _KINDS[inside.ethertype]
    return found
