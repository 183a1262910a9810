"""Cut super-packets (GSO, GRO, BIG TCP; TCP and UDP) into the segments that are on the wire.

A super-packet has one set of headers and up to several hundred KiB of payload; ``gso_size`` octets
of it go into each segment (linux/virtio_net.h; tcp_gso_segment in net/ipv4/tcp_offload.c,
__udp_gso_segment in net/ipv4/udp_offload.c). Each segment gets a head of its own, in which
``fields`` writes what differs, and a slice of the payload where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tunnelbridge.batch import INBOUND, NEEDS_CSUM, Batch, Column, Flags, Octets, zeros
from tunnelbridge.restore import fields, heads
from tunnelbridge.restore.checksums import GSO_TYPE
from tunnelbridge.restore.headers import ABSENT, TCP, UDP, Headers, find
from tunnelbridge.wire.octets import ragged

ECN: Final = 0x80
"""VIRTIO_NET_HDR_GSO_ECN, a flag in ``gso_type``: CWR is meant for the first segment only."""
TCPV4, TCPV6, UDP_L4 = 1, 4, 5
"""``gso_type`` of what can be cut; 3 is the old UFO, of which the pieces are IP fragments."""
JUMBO: Final = 8
"""Octets of the hop-by-hop header that an IPv6 BIG TCP packet has and its segments do not."""


@dataclass(slots=True)
class Cut:
    """The result: ``index`` is the input position of each output packet."""

    batch: Batch
    index: Column
    unsegmented: int


@dataclass(slots=True)
class _Templates:
    """The headers of each super-packet, copied once: ``octets[start:][:headers.end]``."""

    octets: Octets
    start: Column
    headers: Headers


def segment(batch: Batch) -> Cut:
    """Replace each super-packet by its segments; other packets stay, in order.

    A super-packet that cannot be cut (unknown type or headers) is passed on and counted. Of one that
    a snap length has cut, all segments come out, with the octets that are there and the
    ``wire_length`` they had; their checksums nobody can compute.
    """
    everyone = np.arange(len(batch))
    kind = zeros(len(batch)) if batch.vnet is None else batch.vnet["gso_type"] & GSO_TYPE
    supers = np.flatnonzero(kind)
    if batch.vnet is None or not supers.size:
        return Cut(batch, everyone, 0)
    found, headers = _find(batch, supers, kind[supers])
    if not found.size:
        return Cut(batch, everyone, len(supers))

    size = batch.vnet["gso_size"][found].astype(np.int64)
    payload = np.maximum(batch.wire_length, batch.length)[found] - headers.end
    count = np.ones(len(batch), np.int64)
    count[found] = np.maximum(-(-payload // size), 1)
    index = np.repeat(everyone, count)
    pieces = count[found]
    rows = ragged((np.cumsum(count) - count)[found], pieces)
    segments = _slices(pieces, size, payload)
    result = _with_heads(batch, batch.select(index), found, headers, rows, segments)
    return Cut(result, index, len(supers) - len(found))


def _find(batch: Batch, supers: Column, kind: Column) -> tuple[Column, Headers]:
    """Return which super-packets can be cut, and their headers."""
    assert batch.vnet is not None
    vnet = batch.vnet[supers]
    headers = find(
        batch.memory,
        batch.start[supers],
        batch.length[supers],
        wanted=np.where(kind == UDP_L4, UDP, TCP),
        target=np.where(vnet["flags"] & NEEDS_CSUM, vnet["csum_start"].astype(np.int64), ABSENT),
    )
    known = np.isin(kind, (TCPV4, TCPV6, UDP_L4)) & (vnet["gso_size"] > 0)
    chosen = np.flatnonzero(headers.found & known)
    return supers[chosen], headers.select(chosen)


def _slices(pieces: Column, size: Column, payload: Column) -> fields.Segments:
    """Return which slice of whose payload each segment has."""
    owner = np.repeat(np.arange(len(pieces)), pieces)
    number = ragged(zeros(len(pieces)), pieces)
    offset = number * size[owner]
    last: Flags = number == (pieces - 1)[owner]
    length = np.minimum(size[owner], payload[owner] - offset)
    return fields.Segments(owner, number, offset, length, last)


def _with_heads(
    batch: Batch, expanded: Batch, found: Column, headers: Headers, rows: Column,
    segments: fields.Segments,
) -> Batch:  # fmt: skip
    """Give the segments at ``rows`` of the expanded batch their heads and bodies."""
    owner = segments.owner
    body = (batch.start[found] + headers.end)[owner] + segments.offset
    present = (batch.length[found] - headers.end)[owner] - segments.offset
    present = np.clip(present, 0, segments.length)
    assert batch.vnet is not None
    inbound = batch.direction[found] == INBOUND
    ecn = batch.vnet["gso_type"][found] & ECN != 0
    template = _templates(batch, found, headers)
    size = template.headers.end[owner]
    octets, place = heads.copy(template.octets, template.start[owner], size)
    fields.write(
        fields.Source(template.octets, template.start, template.headers, inbound, ecn),
        fields.Target(octets, place, batch.memory, body, present),
        segments,
    )
    expanded.start[rows] = body
    expanded.length[rows] = present
    expanded.wire_length[rows] = size + segments.length
    return heads.attach(expanded, rows, octets, place, size, skip=zeros(len(rows)))


def _templates(batch: Batch, found: Column, headers: Headers) -> _Templates:
    """Copy the headers, without those that only a BIG TCP super-packet has."""
    octets, start = heads.copy(batch.memory, batch.start[found], headers.end)
    has_jumbo = headers.jumbo != ABSENT
    if not has_jumbo.any():
        return _Templates(octets, start, headers)
    keep = np.ones(octets.size, np.bool_)
    removed = np.zeros_like(headers.network)
    for level, packets in enumerate(has_jumbo):
        chosen = np.flatnonzero(packets)
        jumbo = headers.jumbo[level]
        at = start[chosen] + jumbo[chosen]
        octets[start[chosen] + headers.network[level, chosen] + 6] = octets[at]  # next header
        keep[ragged(at, np.full(len(at), JUMBO))] = False
        removed[level] = JUMBO * packets
    gone = np.cumsum(~keep)
    return _Templates(octets[keep], start - (gone - ~keep)[start], _moved(headers, removed))


def _moved(headers: Headers, removed: Column) -> Headers:
    """Return the offsets after ``removed[level]`` octets left each level's IP header's end."""
    upto = np.cumsum(removed, axis=0)
    before = upto - removed
    moved = headers.select(np.arange(len(headers.last)))
    moved.network -= before
    moved.transport -= upto
    after_jumbo = headers.destination > headers.jumbo
    moved.destination -= np.where(after_jumbo, upto, before)
    moved.end -= upto[-1]
    return moved
