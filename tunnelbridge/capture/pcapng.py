"""Walk a pcapng file's blocks: sections, interfaces and packets; everything else is skipped.

Format: draft-ietf-opsawg-pcapng. A file may hold several sections, each with its own byte order and
interfaces, and an interface may appear at any place before its first packet.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from tunnelbridge.batch import Batch, Column, Octets
from tunnelbridge.capture import packet_blocks
from tunnelbridge.capture.packet_blocks import ENHANCED, PACKET, SIMPLE, Section
from tunnelbridge.capture.progress import CaptureBatch, Progress
from tunnelbridge.capture.timestamps import Resolution

MAGIC: Final = bytes.fromhex("0a0d0d0a")
"""The type of a section header block; it reads the same in both byte orders."""

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_ORDERS: Final = {bytes.fromhex("1a2b3c4d"): ">", bytes.fromhex("4d3c2b1a"): "<"}
_ENVELOPE: Final = 12
"""Type and length, and the length again at the end."""
_SMALLEST: Final = {_SECTION: 28, _INTERFACE: 20, PACKET: 32, SIMPLE: 16, ENHANCED: 32}

_PACKETS: Final = frozenset({ENHANCED, SIMPLE, PACKET})

_TSRESOL: Final = 9
_TSOFFSET: Final = 14


def batches(memory: Octets, size: int, progress: Progress) -> Iterator[CaptureBatch]:
    """Yield the packets of a pcapng file in batches of at most ``size``, over ``memory`` itself.

    Stops at the first block that cannot be right, and tells ``progress`` where and why.
    ``memory`` begins with :data:`MAGIC`.
    """
    for section, kinds, offsets in _runs(memory, size, progress):
        kind, position = np.array(kinds, np.int64), np.array(offsets, np.int64)
        fields = packet_blocks.read(memory, section, kind, position)
        problem = packet_blocks.damaged(memory, section, fields)
        if problem is not None:
            first, what = problem
            kind, position = kind[:first], position[:first]
            fields = packet_blocks.read(memory, section, kind, position)
        batch = packet_blocks.batch_of(memory, section, kind, fields)
        yield from _by_linktype(batch, np.array(section.linktype, np.int64)[fields.interface])
        if problem is not None:
            progress.stop(offsets[first], f"block at offset {offsets[first]} {what}")
            return


def _by_linktype(batch: Batch, linktype: Column) -> Iterator[CaptureBatch]:
    """Cut a batch where the linktype changes, so that packets stay in file order."""
    changes = (np.flatnonzero(np.diff(linktype)) + 1).tolist()
    for begin, end in itertools.pairwise([0, *changes, len(batch)]):
        if end > begin:
            whole = end - begin == len(batch)
            part = batch if whole else batch.select(np.arange(begin, end))
            yield CaptureBatch(part, int(linktype[begin]))


def _runs(
    memory: Octets, size: int, progress: Progress
) -> Iterator[tuple[Section, list[int], list[int]]]:
    """Yield neighbouring packet blocks of one section: their types and offsets, 1 to ``size``.

    Each block's length says where the next one is, so this is a loop per block.
    """
    data, end = memory.data, memory.size
    section, envelope = Section("="), struct.Struct("=II").unpack_from
    kinds: list[int] = []
    offsets: list[int] = []
    offset, damage = 0, None
    while offset < end:
        left = end - offset
        if left < _ENVELOPE:
            damage = f"is cut short (needs {_ENVELOPE} octets, {left} left)"
            break
        kind, total = envelope(data, offset)
        if kind == _SECTION:
            magic = memory[offset + 8 : offset + 12].tobytes()
            if magic not in _ORDERS:
                damage = f"has an unknown byte-order magic {magic.hex()}"
                break
            envelope = struct.Struct(_ORDERS[magic] + "II").unpack_from
            kind, total = envelope(data, offset)
        if damage := _impossible(kind, total, left):
            break
        if kinds and (kind in (_SECTION, _INTERFACE) or len(kinds) == size):
            progress.reach(offset)
            yield section, kinds, offsets
            kinds, offsets = [], []
        if kind in _PACKETS:
            kinds.append(kind)
            offsets.append(offset)
        elif envelope(data, offset + total - 8)[1] != total:
            damage = "does not end with its length"
            break
        elif kind == _SECTION:
            section = Section(_ORDERS[magic])
        elif kind == _INTERFACE:
            _add_interface(section, memory, offset, total)
        offset += total
    progress.reach(offset)
    if kinds:
        yield section, kinds, offsets
    if damage is not None:
        progress.stop(offset, f"block at offset {offset} {damage}")


def _impossible(kind: int, total: int, left: int) -> str | None:
    """Say why a block of ``total`` octets cannot be here, or return None."""
    if total % 4 or total < _SMALLEST.get(kind, _ENVELOPE):
        return f"has an impossible length of {total} octets"
    if total > left:
        return f"is cut short (needs {total} octets, {left} left)"
    return None


def _add_interface(section: Section, memory: Octets, offset: int, total: int) -> None:
    """Take in the Interface Description Block at ``offset``; options that overrun it are ignored."""
    data, order = memory.data, section.order
    linktype, _, snaplen = struct.unpack_from(order + "HHI", data, offset + 8)
    resolution = Resolution()
    position, end = offset + 16, offset + total - 4
    while position + 4 <= end:
        code, length = struct.unpack_from(order + "HH", data, position)
        position += 4
        if code == 0 or position + length > end:
            break
        if code == _TSRESOL and length == 1:
            resolution.exponent = int(memory[position])
        elif code == _TSOFFSET and length == 8:
            (resolution.offset,) = struct.unpack_from(order + "q", data, position)
        position += (length + 3) // 4 * 4
    section.linktype.append(linktype)
    section.snaplen.append(snaplen)
    section.resolution.append(resolution)
