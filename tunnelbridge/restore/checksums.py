"""Finish the checksums that the kernel left to the network card (CHECKSUM_PARTIAL).

The field already holds the sum of the pseudo-header; what is missing is the sum from ``csum_start``
to the packet's end (struct virtio_net_hdr, linux/virtio_net.h; skb_checksum_help, net/core/dev.c).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import NEEDS_CSUM, Batch
from tunnelbridge.restore import heads
from tunnelbridge.wire.octets import checksum, sum_words

GSO_TYPE: Final = 0x0F
"""``gso_type`` without its flags (ECN 0x80, tunnels 0x40 and 0x20, proposed: AccECN 0x10)."""
MACS: Final = 12
"""Octets of the two Ethernet addresses: the least a head holds, so that a tag fits behind them."""


def finish(batch: Batch) -> Batch:
    """Complete each packet whose ``vnet`` says NEEDS_CSUM and that is not a super-packet.

    Such a packet becomes a head, up to and including the checksum field, and the rest as body. Left
    as they are: packets whose field lies past their end, and packets cut by a snap length, of which
    nobody can compute or verify the sum. A result of 0 is stored as 0xffff (CSUM_MANGLED_0).
    """
    if batch.vnet is None:
        return batch
    partial = (batch.vnet["flags"] & NEEDS_CSUM != 0) & (batch.vnet["gso_type"] & GSO_TYPE == 0)
    if not partial.any():
        return batch
    begin = batch.vnet["csum_start"].astype(np.int64)
    field = begin + batch.vnet["csum_offset"]
    whole = batch.length >= batch.wire_length
    rows = np.flatnonzero(partial & whole & (field + 2 <= batch.length))
    begin, field = begin[rows], field[rows]
    start, length = batch.start[rows], batch.length[rows]

    value = checksum(sum_words(batch.memory, start + begin, length - begin))
    value[value == 0] = 0xFFFF
    size = np.maximum(field + 2, np.minimum(length, MACS))
    octets, place = heads.copy(batch.memory, start, size)
    heads.view(octets, ">u2")[place + field] = value
    return heads.attach(batch, rows, octets, place, size, skip=size)
