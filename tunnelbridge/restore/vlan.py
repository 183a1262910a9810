"""Put back the outer VLAN tag that the kernel took out of the frame (IEEE 802.1Q, 802.1ad).

Only the outer tag of a stack is taken out; inner ones are in the data. libpcap does the same
(pcap-linux.c: the twelve octets of the two addresses move, the tag fills the gap).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tunnelbridge.batch import Batch, Column, Octets, zeros
from tunnelbridge.restore import heads
from tunnelbridge.restore.checksums import MACS

TAG: Final = 4
"""Octets of a tag: TPID and TCI."""


def insert(batch: Batch) -> Batch:
    """Re-insert the tag of every packet whose ``vlan`` is not 0, in a head of its own.

    The tag counts in ``wire_length``. A frame too short to have two addresses stays as it is.
    """
    if batch.vlan is None:
        return batch
    tagged = (batch.vlan != 0) & (batch.total_length >= MACS)
    if not tagged.any():
        return batch
    without = tagged if batch.head_length is None else tagged & (batch.head_length == 0)
    result = _tag_heads(batch, np.flatnonzero(tagged & ~without))
    result = _tag_bodies(result, np.flatnonzero(without))
    result.wire_length = batch.wire_length + TAG * tagged
    return result


def _tag_heads(batch: Batch, rows: Column) -> Batch:
    """Tag packets that have a head already, of at least the two addresses."""
    if batch.head_start is None or batch.head_length is None or not rows.size:
        return batch
    size = batch.head_length[rows]
    octets, place = heads.copy(batch.head, batch.head_start[rows], size, room=TAG)
    _fill(octets, place, _tags(batch, rows))
    return heads.attach(batch, rows, octets, place, size + TAG, skip=zeros(len(rows)))


def _tag_bodies(batch: Batch, rows: Column) -> Batch:
    """Tag packets without a head: addresses and tag become one."""
    if not rows.size:
        return batch
    size = np.full(len(rows), MACS, np.int64)
    octets, place = heads.copy(batch.memory, batch.start[rows], size, room=TAG)
    _fill(octets, place, _tags(batch, rows))
    return heads.attach(batch, rows, octets, place, size + TAG, skip=size)


def _tags(batch: Batch, rows: Column) -> Column:
    return zeros(len(rows)) if batch.vlan is None else batch.vlan[rows]


def _fill(octets: Octets, place: Column, tags: Column) -> None:
    """Move the addresses into the room in front and write the tag into the gap."""
    addresses = heads.view(octets, f"V{MACS}")
    addresses[place] = addresses[place + TAG]
    heads.view(octets, ">u4")[place + MACS] = tags
