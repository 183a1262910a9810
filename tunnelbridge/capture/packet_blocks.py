"""Gather pcapng's three kinds of packet blocks as columns.

Format: draft-ietf-opsawg-pcapng, sections 4.3 (enhanced), 4.4 (simple) and appendix A (the obsolete
Packet Block).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import INBOUND, OUTBOUND, Batch, Column, Flags, Octets, zeros
from tunnelbridge.capture.timestamps import Resolution, nanoseconds
from tunnelbridge.wire import octets

PACKET: Final = 2
SIMPLE: Final = 3
ENHANCED: Final = 6

_FLAGS: Final = 2
"""The option epb_flags, and pack_flags of the obsolete block: one code, one layout."""
_DIRECTION: Final = 3
_SENT: Final = 2
_MOST_OPTIONS: Final = 32
"""Options of a packet that are searched for its direction; real packets have a few."""


@dataclass(slots=True)
class Section:
    """What the blocks of one section share: byte order ("<" or ">") and interfaces."""

    order: str
    linktype: list[int] = field(default_factory=list)
    snaplen: list[int] = field(default_factory=list)
    resolution: list[Resolution] = field(default_factory=list)


@dataclass(slots=True)
class Fields:
    """Packet blocks as columns, shape (n,)."""

    total: Column
    interface: Column
    time: npt.NDArray[np.uint64]
    captured: Column
    original: Column
    start: Column
    """File offset of the data."""
    end: Column
    """File offset of the block's last word, its trailing length."""


def read(memory: Octets, section: Section, kind: Column, position: Column) -> Fields:
    """Read the blocks at ``position``, all of which lie wholly in ``memory``.

    Nothing is promised about what they say: see :func:`damaged`.
    """
    count = len(position)
    fields = Fields(
        total=zeros(count),
        interface=zeros(count),
        time=np.zeros(count, np.uint64),
        captured=zeros(count),
        original=zeros(count),
        start=zeros(count),
        end=zeros(count),
    )
    for one_kind in (ENHANCED, PACKET, SIMPLE):
        index = np.flatnonzero(kind == one_kind)
        if index.size:
            _fill(fields, index, memory, section, one_kind, position[index])
    return fields


def _layout(order: str, kind: int) -> np.dtype[np.void]:
    word, half = order + "u4", order + "u2"
    fields = [("kind", word), ("total", word)]
    if kind == SIMPLE:
        return np.dtype([*fields, ("original", word)])
    if kind == PACKET:
        fields += [("interface", half), ("drops", half)]
    else:
        fields += [("interface", word)]
    fields += [("high", word), ("low", word), ("captured", word), ("original", word)]
    return np.dtype(fields)


def _fill(
    fields: Fields, index: Column, memory: Octets, section: Section, kind: int, position: Column
) -> None:
    layout = _layout(section.order, kind)
    block = octets.load(memory, position, layout)
    total = block["total"].astype(np.int64)
    fields.total[index] = total
    fields.original[index] = block["original"]
    fields.start[index] = position + layout.itemsize
    fields.end[index] = position + total - 4
    if kind == SIMPLE:  # on the first interface, at no known time, as long as fits
        snaplen = (section.snaplen[0] if section.snaplen else 0) or 2**32
        room = total - 4 - layout.itemsize
        fields.captured[index] = np.minimum(np.minimum(fields.original[index], snaplen), room)
        return
    fields.interface[index] = block["interface"]
    fields.captured[index] = block["captured"]
    high = block["high"].astype(np.uint64) << np.uint64(32)
    fields.time[index] = high | block["low"].astype(np.uint64)


def damaged(memory: Octets, section: Section, fields: Fields) -> tuple[int, str] | None:
    """Return the first block that contradicts itself, and how, or None."""
    trailer = octets.load(memory, fields.end, np.dtype([("total", section.order + "u4")]))["total"]
    interfaces = len(section.linktype)
    wrong: list[tuple[Flags, str]] = [
        (trailer != fields.total, "does not end with its length"),
        (fields.interface >= interfaces, f"names an interface of which there are {interfaces}"),
        (fields.start + fields.captured > fields.end, "is shorter than the packet in it"),
    ]
    found = [(int(np.argmax(flags)), what) for flags, what in wrong if flags.any()]
    return min(found, key=lambda problem: problem[0]) if found else None


def batch_of(memory: Octets, section: Section, kind: Column, fields: Fields) -> Batch:
    """Return the packets of sound blocks, over ``memory``.

    A simple packet block has no timestamp: its packet's is 0. A direction is known where the block
    says so; else a packet is inbound.
    """
    return Batch(
        memory=memory,
        start=fields.start,
        length=fields.captured,
        wire_length=np.maximum(fields.original, fields.captured),
        timestamp=_timestamps(section, kind, fields),
        direction=_directions(memory, section, fields),
    )


def _timestamps(section: Section, kind: Column, fields: Fields) -> Column:
    result = zeros(len(kind))
    timed = kind != SIMPLE
    for interface in np.unique(fields.interface[timed]).tolist():
        index = np.flatnonzero(timed & (fields.interface == interface))
        result[index] = nanoseconds(fields.time[index], section.resolution[interface])
    return result


def _directions(memory: Octets, section: Section, fields: Fields) -> npt.NDArray[np.uint8]:
    """Look through all packets' options at once, first options first."""
    word, half = section.order + "u4", section.order + "u2"
    layout = np.dtype([("code", half), ("length", half), ("value", word)])
    result = np.full(len(fields.start), INBOUND, np.uint8)
    position = fields.start + (fields.captured + 3) // 4 * 4
    index = np.arange(len(position))
    for _ in range(_MOST_OPTIONS):
        # Only an option with a value of four octets or more can be followed by one that matters.
        index = index[position[index] + layout.itemsize <= fields.end[index]]
        if index.size == 0:
            break
        option = octets.load(memory, position[index], layout)
        flags = (option["code"] == _FLAGS) & (option["length"] == 4)
        sent = flags & (option["value"] & _DIRECTION == _SENT)
        result[index[sent]] = OUTBOUND
        position[index] += 4 + (option["length"].astype(np.int64) + 3) // 4 * 4
        index = index[~flags & (option["code"] != 0)]
    return result
