"""The entry: a batch as an AF_PACKET ring gave it becomes a batch as it is on the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tunnelbridge.batch import Batch, Column
from tunnelbridge.restore.checksums import finish
from tunnelbridge.restore.segmentation import segment
from tunnelbridge.restore.vlan import insert


@dataclass(slots=True)
class Restored:
    """Wire-true packets.

    ``batch`` has no ``vlan`` and no ``vnet``. ``index`` (int64, shape (m,), ascending) is the input
    position that each output packet came from. ``unsegmented`` counts super-packets that could not
    be cut and are passed on as they are (UFO, unknown headers).
    """

    batch: Batch
    index: Column
    unsegmented: int


def restore(batch: Batch) -> Restored:
    """Cut super-packets, finish checksums and put back VLAN tags; keep the order.

    ``batch`` comes from a ring: its packets are Ethernet frames and have no heads yet. Nothing in
    ``memory`` is changed, and the payload of the output lies in it. Whatever ``vnet`` and ``vlan``
    hold, nothing is raised: what makes no sense leaves the packet as it is.
    """
    if batch.vlan is None and batch.vnet is None:
        return Restored(batch, np.arange(len(batch)), 0)
    cut = segment(batch)
    # Offsets in vnet count from the frame without the stripped tag, so the tag comes last.
    result = insert(finish(cut.batch))
    return Restored(replace(result, vlan=None, vnet=None), cut.index, cut.unsegmented)
