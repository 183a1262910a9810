"""Bring packets of other link types into Ethernet frames, so that one tunnel can carry all.

Bare IP gets a synthetic MAC header; Linux "cooked" captures (SLL, SLL2) keep their EtherType. The
frames are built in memory of their own: files are the slow path.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Batch, Column
from tunnelbridge.errors import UserError
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.octets import load, ragged

EN10MB: Final = 1
_BARE_IP: Final = (12, 14, 101, 228, 229)
_COOKED: Final = {113: (16, 14), 276: (20, 0)}
"""Link type to (header octets, where in them the EtherType stands)."""
_TYPE: Final = np.dtype([("type", ">u2")])


def as_ethernet(batch: Batch, linktype: int) -> Batch:
    """Return the batch as Ethernet; raises UserError for link types that cannot become frames.

    What ends before its own header does becomes an empty frame, for others to refuse and count.
    """
    if linktype == EN10MB:
        return batch
    if linktype in _BARE_IP:
        nibble = batch.memory[np.minimum(batch.start, batch.memory.size - 1)] >> 4
        ethertype = np.where(nibble == 6, ethernet.IPV6, ethernet.IPV4).astype(np.int64)
        return _reframed(batch, 0, ethertype)
    if linktype in _COOKED:
        octets, at = _COOKED[linktype]
        ethertype = load(batch.memory, batch.start + at, _TYPE)["type"].astype(np.int64)
        return _reframed(batch, octets, ethertype)
    raise UserError(
        f"link type {linktype} cannot be carried as Ethernet; Ethernet, bare IP and Linux cooked"
        " captures can"
    )


def _reframed(batch: Batch, strip: int, ethertype: Column) -> Batch:
    """Return frames with ``strip`` octets replaced by a synthetic MAC header."""
    header = np.zeros(len(batch), ethernet.HEADER)
    header["destination"] = np.void(bytes.fromhex("020000000002"))
    header["source"] = np.void(bytes.fromhex("020000000001"))
    header["type"] = ethertype
    grown = ethernet.HEADER.itemsize - strip
    whole = np.flatnonzero(batch.length >= max(strip, 1))
    length = np.zeros(len(batch), np.int64)
    length[whole] = batch.length[whole] + grown
    start = np.cumsum(length) - length
    memory = np.zeros(int(length.sum()), np.uint8)
    rows = header.view(np.uint8).reshape(-1, ethernet.HEADER.itemsize)
    memory[start[whole, None] + np.arange(ethernet.HEADER.itemsize)] = rows[whole]
    body = length[whole] - ethernet.HEADER.itemsize
    source = batch.memory[ragged(batch.start[whole] + strip, body)]
    memory[ragged(start[whole] + ethernet.HEADER.itemsize, body)] = source
    framed = batch.select(np.arange(len(batch)))
    framed.memory, framed.start, framed.length = memory, start, length
    framed.wire_length = np.maximum(batch.wire_length + grown, length)
    return framed
