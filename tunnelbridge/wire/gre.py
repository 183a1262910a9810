"""GRE (RFC 2784, 2890, 1701; version 1: RFC 2637) and what it announces.

     0                   1                   2                   3
    |C|R|K|S|s|Recur|A| Flags | Ver |         Protocol Type         |
    |      Checksum (if C or R)     |   Reserved1 / Offset (C or R) |
    |                         Key (if K)                            |
    |                   Sequence Number (if S)                      |
    |   Acknowledgment (version 1 and A)  |  Routing entries (if R) |

Receiver: bits 6–12 are ignored (RFC 2784 §2.3); R is understood as in RFC 1701, so it need not be
discarded; both checksum and offset words are present if either C or R is set. A collector never
discards by sequence number (RFC 2890 §2.2 leaves that to the receiver), it counts gaps. ERSPAN is
told apart by the S bit and the version nibble, never by the header's length: type III is sent with
S=0, and old Linux sends it as 0x88BE. In version 1 the key is a length and a call number (PPTP, RFC
2637 §4.1) or tunnel number (EoIP, little endian), and Tencent's sequence word is an address.

Protocol types: 6558 Ethernet (also NVGRE, RFC 7637) · 88BE ERSPAN I or II · 22EB ERSPAN III ·
0800 86DD bare IP · 8847 8848 MPLS · 894F NSH · 883E WCCP · 8949 SONiC on Mellanox (22 octets, then
Ethernet) · 880B PPP (PPTP) · 6400 MikroTik EoIP · 0000 keepalive.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column, Octets
from tunnelbridge.wire.layer import UNKNOWN, Clones, Kind, Layer, layer, refuse, table
from tunnelbridge.wire.octets import checksum, load, sum_words
from tunnelbridge.wire.reasons import Reason

HEADER: Final = np.dtype([("flags", ">u2"), ("protocol", ">u2")])
WORD: Final = np.dtype([("value", ">u4")])
ROUTE: Final = np.dtype([("family", ">u2"), ("offset", "u1"), ("length", "u1")])

CHECKSUM, ROUTING, KEY, SEQUENCE, ACKNOWLEDGMENT = 0x8000, 0x4000, 0x2000, 0x1000, 0x0080
VERSION: Final = 0x0007

TEB: Final = 0x6558
IPV4: Final = 0x0800
IPV6: Final = 0x86DD
ERSPAN: Final = 0x88BE
ERSPAN3: Final = 0x22EB
WCCP: Final = 0x883E
SONIC: Final = 0x8949
PPP: Final = 0x880B
EOIP: Final = 0x6400
SONIC_OCTETS: Final = 22
MAX_ROUTES: Final = 8

_KINDS: Final = table(
    0x10000,
    {
        TEB: Kind.ETHERNET,
        ERSPAN: Kind.ETHERNET,
        ERSPAN3: Kind.ERSPAN3,
        IPV4: Kind.IPV4,
        IPV6: Kind.IPV6,
        0x8847: Kind.MPLS,
        0x8848: Kind.MPLS,
        0x894F: Kind.NSH,
        WCCP: Kind.IPV4,
        SONIC: Kind.ETHERNET,
        PPP: Kind.PPP,
        EOIP: Kind.ETHERNET,
    },
)
_ENCAPSULATIONS: Final = np.full(0x10000, Kind.GRE, np.uint8)
_ENCAPSULATIONS[[IPV4, IPV6, WCCP]] = Kind.GRE_IP
_ENCAPSULATIONS[[0x8847, 0x8848]] = Kind.MPLS
_ENCAPSULATIONS[ERSPAN] = Kind.ERSPAN1
_ENCAPSULATIONS[ERSPAN3] = Kind.ERSPAN3


def template(
    protocol: int, key: int | None = None, sequence: bool = False, with_checksum: bool = False
) -> npt.NDArray[np.void]:
    """Return the header; its dtype has the optional words that were asked for, in RFC order."""
    fields = [("flags", ">u2"), ("protocol", ">u2")]
    flags = 0
    if with_checksum:
        fields += [("checksum", ">u2"), ("reserved1", ">u2")]
        flags |= CHECKSUM
    if key is not None:
        fields += [("key", ">u4")]
        flags |= KEY
    if sequence:
        fields += [("sequence", ">u4")]
        flags |= SEQUENCE
    record = np.zeros(1, np.dtype(fields))
    record["flags"], record["protocol"] = flags, protocol
    if key is not None:
        record["key"] = key
    return record


def patch(rows: npt.NDArray[Any], clones: Clones, beyond: Column) -> None:
    """Write the sequence number, and the inner EtherType of a tunnel that carries bare IP."""
    names = rows.dtype.names or ()
    if "sequence" in names:
        rows["sequence"] = clones.sequence & 0xFFFFFFFF
    if "checksum" in names:
        rows["checksum"] = 0
    if len(rows) and rows["protocol"][0] in (IPV4, IPV6):
        rows["protocol"] = clones.ethertype


def finish_checksum(rows: npt.NDArray[np.uint8], at: Column, batch: Batch) -> None:
    """Fill the checksum of finished headers (RFC 2784 §2.5: GRE header and payload).

    ``rows`` (n, h) are the headers from the GRE header on, contiguous, and ``at`` counts the octets
    of each; the packet of ``batch`` follows. Every header is of even length, so sums add up.
    """
    total = sum_words(rows.reshape(-1), np.arange(len(rows)) * rows.shape[1], at).astype(np.int64)
    if batch.head_start is not None and batch.head_length is not None:
        total += sum_words(batch.head, batch.head_start, batch.head_length)
        body = sum_words(batch.memory, batch.start, batch.length).astype(np.int64)
        swapped = ((body & 0xFF) << 8) | (body >> 8)  # a body behind an odd head (RFC 1071 §2 (B))
        total += np.where(batch.head_length % 2 == 1, swapped, body)
    else:
        total += sum_words(batch.memory, batch.start, batch.length)
    rows[:, 4:6] = checksum(total).astype(">u2")[:, None].view(np.uint8)


def decode(memory: Octets, start: Column, end: Column) -> Layer:
    """Read GRE headers of any flags; ``identifier`` is the key, ``kind`` by protocol type."""
    found = layer(start, end)
    header = load(memory, start, HEADER)
    refuse(found, start + HEADER.itemsize > end, Reason.GRE_SHORT)
    flags = header["flags"].astype(np.int64)
    protocol = header["protocol"]
    version = flags & VERSION
    refuse(found, version > 1, Reason.GRE_VERSION)
    refuse(found, (protocol == 0) & (found.reason == 0), Reason.GRE_KEEPALIVE)
    found.payload = start + HEADER.itemsize
    found.kind = _KINDS[protocol]
    found.encapsulation = _ENCAPSULATIONS[protocol]
    if flags.any():  # otherwise it is the plain header of most tunnels
        _optional_words(memory, found, flags)
        _read_version_1(found, flags, protocol)
        _tell_erspan_apart(memory, found, flags, protocol)
    refuse(found, found.payload > found.end, Reason.GRE_SHORT)
    refuse(found, found.kind == Kind.NONE, Reason.GRE_PROTOCOL)
    _peculiarities(memory, found, protocol)
    return found


def _optional_words(memory: Octets, found: Layer, flags: Column) -> None:
    """Pass checksum, key, sequence, acknowledgment and routing words, in place."""
    found.payload += np.where(flags & (CHECKSUM | ROUTING), 4, 0)
    has_key, has_sequence = flags & KEY != 0, flags & SEQUENCE != 0
    found.identifier = np.where(has_key, _word(memory, found), UNKNOWN)
    found.payload += np.where(has_key, 4, 0)
    found.sequence = np.where(has_sequence, _word(memory, found), UNKNOWN)
    found.payload += np.where(has_sequence, 4, 0)
    version1 = flags & VERSION == 1
    found.payload += np.where(version1 & (flags & ACKNOWLEDGMENT != 0), 4, 0)
    _skip_routing(memory, found, np.flatnonzero((flags & ROUTING != 0) & (found.reason == 0)))


def _word(memory: Octets, found: Layer) -> Column:
    return load(memory, found.payload, WORD)["value"].astype(np.int64)


def _skip_routing(memory: Octets, found: Layer, walking: npt.NDArray[np.int64]) -> None:
    """Pass source route entries up to the one of length 0 (RFC 1701)."""
    for _ in range(MAX_ROUTES):
        if not walking.size:
            return
        route = load(memory, found.payload[walking], ROUTE)
        found.payload[walking] += ROUTE.itemsize + route["length"].astype(np.int64)
        beyond = found.payload[walking] > found.end[walking]
        found.reason[walking[beyond]] = Reason.GRE_SHORT
        walking = walking[~beyond & (route["length"] > 0)]
    found.reason[walking] = Reason.GRE_ROUTING


def _read_version_1(found: Layer, flags: Column, protocol: npt.NDArray[Any]) -> None:
    """Keep of version 1's words what stays the same (key) or counts (sequence), in place."""
    version1 = flags & VERSION == 1
    if not version1.any() or found.identifier is None or found.sequence is None:
        return
    keyed = version1 & (flags & KEY != 0)
    pptp, eoip = keyed & (protocol == PPP), keyed & (protocol == EOIP)
    number = found.identifier & 0xFFFF  # behind the payload's length
    found.identifier[pptp] = number[pptp]
    found.identifier[eoip] = (number[eoip] >> 8) | (number[eoip] & 0xFF) << 8
    found.sequence[version1 & (protocol == IPV4)] = UNKNOWN


def _tell_erspan_apart(
    memory: Octets, found: Layer, flags: Column, protocol: npt.NDArray[Any]
) -> None:
    """0x88BE with a sequence number is type II, or type III from old Linux: the nibble tells."""
    whole = (found.reason == 0) & (found.payload <= found.end)
    with_header = np.flatnonzero(whole & (protocol == ERSPAN) & (flags & SEQUENCE != 0))
    if not with_header.size or found.encapsulation is None:
        return
    payload = found.payload[with_header]
    absent = payload == found.end[with_header]
    version = np.where(absent, 0, memory[np.minimum(payload, memory.size - 1)] >> 4)
    kind = np.where(version == 2, Kind.ERSPAN3, Kind.ERSPAN2)
    found.kind[with_header] = found.encapsulation[with_header] = kind
    known = (version == 1) | (version == 2)
    wrong = np.where(absent, Reason.ERSPAN_SHORT, Reason.ERSPAN_VERSION)
    found.reason[with_header] = np.where(known, 0, wrong)


def _peculiarities(memory: Octets, found: Layer, protocol: npt.NDArray[Any]) -> None:
    """Pass the octets some senders put between GRE and the packet."""
    wccp = np.flatnonzero((protocol == WCCP) & (found.payload < found.end))
    if wccp.size:  # an optional redirect header: Linux tells it by the nibble of IPv4
        redirect = memory[found.payload[wccp]] >> 4 != 4
        found.payload[wccp[redirect]] += 4
    found.payload += np.where(protocol == SONIC, SONIC_OCTETS, 0)
    refuse(found, found.payload > found.end, Reason.GRE_SHORT)
