"""IPv6 and its extension headers (RFC 8200 §3 and §4).

     0                   1                   2                   3
    |Version| Traffic Class |           Flow Label                  |
    |         Payload Length        |  Next Header  |   Hop Limit   |
    |                     Source Address (16)                       |
    |                  Destination Address (16)                     |

Receiver: walk hop-by-hop (0), routing (43), destination options (60) and authentication (51)
headers in any order; Linux puts eight octets of destination options (the tunnel encapsulation
limit, RFC 2473) before GRE. A fragment header with offset 0 and M 0 is an atomic fragment
(RFC 6946) and is skipped; any other must be reassembled first.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Octets
from tunnelbridge.wire.ipv4 import PROTOCOLS
from tunnelbridge.wire.layer import UNKNOWN, Codes, Layer, layer, refuse
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype(
    [
        ("version_class_flow", ">u4"),
        ("payload_length", ">u2"),
        ("next_header", "u1"),
        ("hop_limit", "u1"),
        ("source", "V16"),
        ("destination", "V16"),
    ]
)
EXTENSION: Final = np.dtype(
    [("next_header", "u1"), ("length", "u1"), ("fragment", ">u2"), ("identification", ">u4")]
)

ROUTING, FRAGMENT, AUTHENTICATION = 43, 44, 51
EXTENSIONS: Final = (0, ROUTING, AUTHENTICATION, 60)
"""Next headers that are skipped; 0 are hop-by-hop options, 60 those for the destination."""
MAX_EXTENSIONS: Final = 8

_IS_EXTENSION: Final = np.isin(np.arange(256), (*EXTENSIONS, FRAGMENT))


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read IPv6 headers with their extensions; ``kind`` by the last next header."""
    return decode_with_protocol(memory, start, end)[0]


def decode_with_protocol(memory: Octets, start: Column, end: Column) -> tuple[Layer, Codes]:
    """Do as :func:`decode`, and return the last next header too, shape (n,).

    It means nothing where the header was refused, except for fragments.
    """
    found = layer(start, end)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.IP_SHORT)
    refuse(found, header["version_class_flow"] >> 28 != 6, Reason.IP_VERSION)
    payload_length = header["payload_length"].astype(np.int64)
    found.payload = start + HEADER.itemsize
    # Zero is a jumbogram or a Linux BIG TCP super-packet: it ends where its octets end.
    unsaid = (payload_length == 0) | (found.reason != 0)
    found.claimed_end = np.where(unsaid, end, found.payload + payload_length)
    found.end = np.minimum(end, found.claimed_end)
    next_header = header["next_header"].copy()
    _skip_extensions(memory, found, next_header)
    found.kind = PROTOCOLS[next_header]
    return found, next_header


def _skip_extensions(memory: Octets, found: Layer, next_header: Codes) -> None:
    """Advance ``found.payload`` and ``next_header`` over extension headers, in place."""
    walking = np.flatnonzero(_IS_EXTENSION[next_header] & (found.reason == 0))
    for _ in range(MAX_EXTENSIONS):
        if not walking.size:
            return
        whole = found.payload[walking] + 8 <= found.end[walking]
        found.reason[walking[~whole]] = Reason.IP_SHORT
        walking = walking[whole]
        record = load(memory, found.payload[walking], EXTENSION)
        kind = next_header[walking]
        octets = (record["length"].astype(np.int64) + 1) * 8
        octets[kind == FRAGMENT] = 8
        is_authentication = kind == AUTHENTICATION
        octets[is_authentication] = (record["length"][is_authentication].astype(np.int64) + 2) * 4
        fragments = (kind == FRAGMENT) & (record["fragment"] & 0xFFF9 != 0)
        if fragments.any():
            _note_fragments(found, walking[fragments], record[fragments])
        found.payload[walking] += octets
        next_header[walking] = record["next_header"]
        beyond = found.payload[walking] > found.end[walking]
        found.reason[walking[beyond & ~fragments]] = Reason.IP_SHORT
        walking = walking[~fragments & ~beyond & _IS_EXTENSION[record["next_header"]]]
    found.reason[walking] = Reason.IP_EXTENSIONS


def _note_fragments(found: Layer, index: Column, record: npt.NDArray[np.void]) -> None:
    found.reason[index] = Reason.IP_FRAGMENT
    if found.fragment is None or found.first_fragment is None:
        found.fragment = np.full(len(found.reason), UNKNOWN, np.int64)
        found.first_fragment = np.zeros(len(found.reason), np.bool_)
    found.fragment[index] = record["identification"]
    found.first_fragment[index] = record["fragment"] & 0xFFF8 == 0
