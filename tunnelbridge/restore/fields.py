"""Write what differs between the heads of one super-packet's segments.

Sums over headers are taken once per super-packet, with the varying fields zero; a segment adds its
own values and the sum of its payload (RFC 1071, RFC 1624). Outer checksums come last, from the
inside out, because they cover everything behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.restore import heads
from tunnelbridge.restore.headers import GRE, TCP, UDP, Headers
from tunnelbridge.wire.octets import checksum, sum_words

FIN_PSH: Final = 0x09
CWR: Final = 0x80
DONT_FRAGMENT: Final = 0x4000
GRE_CHECKSUM: Final = 0x8000


@dataclass(slots=True)
class Segments:
    """One row per segment: whose it is, its number there, its slice of the payload, is it the last."""

    owner: Column
    number: Column
    offset: Column
    length: Column
    last: Flags


@dataclass(slots=True)
class Source:
    """One row per super-packet: a copy of its headers, which :func:`write` zeroes fields in."""

    octets: Octets
    start: Column
    headers: Headers
    inbound: Flags
    ecn: Flags


@dataclass(slots=True)
class Target:
    """One row per segment: its head (a copy of the source's) and its body in the batch's memory."""

    octets: Octets
    start: Column
    memory: Octets
    body: Column
    present: Column


def write(source: Source, target: Target, segments: Segments) -> None:
    """Fill in lengths, ids, sequence numbers, flags and checksums of every level."""
    headers = source.headers
    deepest = int(headers.last.max(initial=0))
    behind = headers.end[segments.owner] + segments.length
    body = sum_words(target.memory, target.body, target.present).astype(np.int64)
    for level in range(deepest + 1):
        _internet(source, target, segments, level, behind)
        if level < deepest:
            _outer_length(source, target, segments, level, behind)
    _tcp(source, target, segments, behind, body)
    _udp(source, target, segments, behind, body)
    for level in reversed(range(deepest)):
        _outer_checksum(source, target, segments, level, behind, body)


def _internet(
    source: Source, target: Target, segments: Segments, level: int, behind: Column
) -> None:
    """Length, id and checksum of the IP headers of one level."""
    headers = source.headers
    here = headers.last >= level
    six = np.flatnonzero((here & (headers.version[level] == 6))[segments.owner])
    if six.size:
        network = headers.network[level][segments.owner[six]]
        _put(target, six, network + 4, behind[six] - network - 40)
    supers = np.flatnonzero(here & (headers.version[level] == 4))
    if not supers.size:
        return
    network = headers.network[level]
    at = source.start[supers] + network[supers]
    first = heads.read(source.octets, at + 4, ">u2")
    fixed = _fixed_id(source, supers, first, heads.read(source.octets, at + 6, ">u2"))
    words = heads.view(source.octets, ">u2")
    words[at + 2], words[at + 4], words[at + 10] = 0, 0, 0
    size = (source.octets[at].astype(np.int64) & 15) << 2
    rows, own = _rows_of(supers, segments)
    base = sum_words(source.octets, at, size).astype(np.int64)[own]
    total = behind[rows] - network[supers][own] & 0xFFFF
    number = first[own] + np.where(fixed[own], 0, segments.number[rows]) & 0xFFFF
    network = network[supers][own]
    _put(target, rows, network + 2, total)
    _put(target, rows, network + 4, number)
    _put(target, rows, network + 10, checksum(base + total + number))


def _fixed_id(source: Source, supers: Column, first: Column, fragment: Column) -> Flags:
    """Tell which received super-packets were merged from packets that all had id 0.

    GRO merges those too where DF is set (RFC 6864 leaves the id without meaning there), and the
    virtio-net header does not say that it did (SKB_GSO_TCP_FIXEDID). Some systems send nothing else.
    """
    headers = source.headers
    tcp = headers.innermost(headers.protocol)[supers] == TCP
    meaningless: Flags = (first == 0) & (fragment & DONT_FRAGMENT != 0)
    fixed: Flags = meaningless & tcp & source.inbound[supers]
    return fixed


def _tcp(source: Source, target: Target, segments: Segments, behind: Column, body: Column) -> None:
    """Sequence number, flags and checksum; FIN and PSH stay on the last segment.

    CWR stays on the first where the kernel marked classic ECN (RFC 3168). Without that mark it is
    one bit of the counter of accurate ECN, and all segments have it (SKB_GSO_TCP_ACCECN).
    """
    supers, at = _innermost(source, TCP)
    if not supers.size:
        return
    sequence = heads.read(source.octets, at + 4, ">u4")
    flags = heads.read(source.octets, at + 12, ">u2")
    words = heads.view(source.octets, ">u2")
    for field in (4, 6, 12, 16):
        words[at + field] = 0
    rows, own = _rows_of(supers, segments)
    transport = (at - source.start[supers])[own]
    sequence = sequence[own] + segments.offset[rows] & 0xFFFFFFFF
    flags = np.where(segments.last[rows], flags[own], flags[own] & ~FIN_PSH)
    once = source.ecn[supers][own] & (segments.number[rows] > 0)
    flags = np.where(once, flags & ~CWR, flags)
    length = behind[rows] - transport
    size = (source.headers.end[supers] + source.start[supers]) - at
    base = _pseudo(source, supers, source.headers.last[supers], TCP)
    base = (base + sum_words(source.octets, at, size))[own]
    total = base + (sequence >> 16) + (sequence & 0xFFFF) + flags + length + body[rows]
    _put(target, rows, transport + 4, sequence, ">u4")
    _put(target, rows, transport + 12, flags)
    _put(target, rows, transport + 16, checksum(total))  # 0 stays 0: gso_make_checksum


def _udp(source: Source, target: Target, segments: Segments, behind: Column, body: Column) -> None:
    """Length and checksum of datagrams; a checksum of 0 would mean that there is none."""
    supers, at = _innermost(source, UDP)
    if not supers.size:
        return
    words = heads.view(source.octets, ">u2")
    words[at + 4], words[at + 6] = 0, 0
    rows, own = _rows_of(supers, segments)
    transport = (at - source.start[supers])[own]
    length = behind[rows] - transport
    base = _pseudo(source, supers, source.headers.last[supers], UDP)
    base = (base + sum_words(source.octets, at, np.full(len(at), 8)))[own]
    value = checksum(base + 2 * length + body[rows])
    _put(target, rows, transport + 4, length)
    _put(target, rows, transport + 6, np.where(value == 0, 0xFFFF, value))


def _outer_length(
    source: Source, target: Target, segments: Segments, level: int, behind: Column
) -> None:
    """Length of the UDP headers that carry tunnels."""
    rows, transport = _outer(source, segments, level, UDP)
    _put(target, rows, transport + 4, behind[rows] - transport)


def _outer_checksum(
    source: Source, target: Target, segments: Segments, level: int, behind: Column, body: Column
) -> None:
    """Checksums of UDP and GRE headers that carry tunnels, where the super-packet has one."""
    headers = source.headers
    for protocol, field in ((UDP, 6), (GRE, 4)):
        rows, transport = _outer(source, segments, level, protocol)
        at = target.start[rows] + transport
        present = (
            heads.read(target.octets, at + field, ">u2") != 0
            if protocol == UDP
            else heads.read(target.octets, at, ">u2") & GRE_CHECKSUM != 0
        )
        rows, transport, at = rows[present], transport[present], at[present]
        if not rows.size:
            continue
        owner = segments.owner[rows]
        _put(target, rows, transport + field, 0)
        total = body[rows] + sum_words(target.octets, at, headers.end[owner] - transport)
        if protocol == UDP:
            level_of = np.full(len(headers.last), level)
            pseudo = _pseudo(source, np.arange(len(headers.last)), level_of, UDP)
            value = checksum(total + pseudo[owner] + behind[rows] - transport)
            value[value == 0] = 0xFFFF
        else:
            value = checksum(total)
        _put(target, rows, transport + field, value)


def _outer(source: Source, segments: Segments, level: int, protocol: int) -> tuple[Column, Column]:
    """Return the segments with such a tunnel header at a level, and its offset."""
    headers = source.headers
    chosen = (headers.last > level) & (headers.protocol[level] == protocol)
    rows = np.flatnonzero(chosen[segments.owner])
    return rows, headers.transport[level][segments.owner[rows]]


def _innermost(source: Source, protocol: int) -> tuple[Column, Column]:
    """Return the super-packets with this innermost protocol, and where in the copy it begins."""
    headers = source.headers
    supers = np.flatnonzero(headers.innermost(headers.protocol) == protocol)
    return supers, source.start[supers] + headers.innermost(headers.transport)[supers]


def _pseudo(source: Source, supers: Column, level: Column, protocol: int) -> Column:
    """Sum the addresses and the protocol of pseudo-headers (RFC 9293 §3.1, RFC 8200 §8.1)."""
    headers = source.headers
    network, version = headers.network[level, supers], headers.version[level, supers]
    size = np.where(version == 4, 4, 16)
    origin = source.start[supers] + network + np.where(version == 4, 12, 8)
    destination = source.start[supers] + headers.destination[level, supers]
    total = sum_words(source.octets, origin, size).astype(np.int64) + protocol
    return total + sum_words(source.octets, destination, size)


def _rows_of(supers: Column, segments: Segments) -> tuple[Column, Column]:
    """Return the segments of some super-packets, and each one's position in ``supers``."""
    position = np.full(int(segments.owner.max(initial=-1)) + 1, -1, np.int64)
    position[supers] = np.arange(len(supers))
    own = position[segments.owner]
    rows = np.flatnonzero(own >= 0)
    return rows, own[rows]


def _put(
    target: Target, rows: Column, offset: Column, value: npt.NDArray[Any] | int, field: str = ">u2"
) -> None:
    """Write a field of each of these heads."""
    heads.view(target.octets, field)[target.start[rows] + offset] = value
