"""MPLS label stacks (RFC 3032) in GRE (RFC 4023), UDP (RFC 7510) and IP (RFC 4023). Received only.

     0                   1                   2                   3
    |                Label                  | TC  |S|      TTL      |

Receiver: nothing behind the last label (S) says what follows. IPv4 proves itself by its header
checksum, IPv6 by its length, Ethernet by its EtherType, each with or without a four-octet control
word (RFC 4385) in front; in that order, because MAC addresses may begin with any nibble. A frame
with a length instead of an EtherType comes last.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.layer import Kind, Layer, layer
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.plausible import is_frame, is_ipv4, is_ipv6, is_llc_frame
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype([("entry", ">u4")])
BOTTOM: Final = 0x100
MAX_LABELS: Final = 16
CONTROL_WORD: Final = 4

_TRIALS: Final = (
    (0, is_ipv4, Kind.IPV4),
    (0, is_ipv6, Kind.IPV6),
    (0, is_frame, Kind.ETHERNET),
    (CONTROL_WORD, is_ipv4, Kind.IPV4),
    (CONTROL_WORD, is_ipv6, Kind.IPV6),
    (CONTROL_WORD, is_frame, Kind.ETHERNET),
    (0, is_llc_frame, Kind.ETHERNET),
    (CONTROL_WORD, is_llc_frame, Kind.ETHERNET),
)
"""What may stand behind the labels, the surest first."""


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read label stacks; ``identifier`` is the bottom label."""
    found = layer(start, end)
    found.payload = start.copy()
    found.identifier = np.zeros(len(start), np.int64)
    walking = np.arange(len(start))
    for _ in range(MAX_LABELS):
        at = found.payload[walking]
        short = at + HEADER.itemsize > found.end[walking]
        found.reason[walking[short]] = Reason.MPLS_SHORT
        entry = load(memory, at, HEADER)["entry"].astype(np.int64)
        found.identifier[walking] = entry >> 12
        found.payload[walking] += HEADER.itemsize
        walking = walking[(entry & BOTTOM == 0) & ~short]
        if not walking.size:
            break
    found.reason[walking] = Reason.MPLS_SHORT
    _tell_payload(memory, found)
    return found


def _tell_payload(memory: Octets, found: Layer) -> None:
    """Try each kind of payload on what is still unknown, in place."""
    unknown = np.flatnonzero(found.reason == 0)
    for offset, looks_like, kind in _TRIALS:
        if not unknown.size:
            return
        at = found.payload[unknown] + offset
        fits = looks_like(memory, at, found.end[unknown])
        if offset:  # a control word begins with a nibble of 0
            word = np.minimum(found.payload[unknown], memory.size - 1)
            fits &= memory[word] >> 4 == 0
        found.kind[unknown[fits]] = kind
        found.payload[unknown[fits]] += offset
        unknown = unknown[~fits]
    found.reason[unknown] = Reason.MPLS_PAYLOAD
