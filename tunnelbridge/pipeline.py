"""The path of one batch through the sender, stage by stage, in order.

1. frames too short for a MAC header are refused
2. flows are read; the loop guard refuses what would come round again
3. tunnelled frames take the flow inside, fragments that of their first one
4. the source's selection says which session mirrors what
5. what the kernel left undone is restored: tags, checksums, segmentation
6. each session gets its frames: it cuts, chooses members, and their tunnels get the clones
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tunnelbridge.batch import Batch, Column, Flags
from tunnelbridge.clone.fragments import FragmentTable
from tunnelbridge.clone.innermost import follow_innermost
from tunnelbridge.ledger import SenderLedger
from tunnelbridge.policy.captured import Captured
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.selection import Selection
from tunnelbridge.policy.session import Session
from tunnelbridge.restore.restore import restore
from tunnelbridge.tunnel import Frames
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.flow import read_flows
from tunnelbridge.wire.reasons import Reason, count


class Taken(NamedTuple):
    """What one session mirrors: which packets, and the rule that accepted each."""

    session: Session
    rows: Column
    rule: Column

    def before(self, row: int) -> Taken:
        """Return what of it lies before a row."""
        kept = self.rows < row
        return Taken(self.session, self.rows[kept], self.rule[kept])


class Pipeline:
    """Clones batches of captured frames as the policy says and keeps the ledger."""

    def __init__(self, policy: Policy, limit: int | None = None) -> None:
        self.policy = policy
        self._limit = limit
        self._fragments = FragmentTable()

    @property
    def ledger(self) -> SenderLedger:
        """The counters of all sources, sessions and tunnels."""
        return self.policy.ledger

    @property
    def is_done(self) -> bool:
        """As many packets were cloned as were asked for."""
        return self._limit is not None and self.ledger.cloned >= self._limit

    def process(self, batch: Batch, selection: Selection) -> None:
        """Take a batch through all stages; its memory may be reused afterwards."""
        if self.is_done:
            return
        self.ledger.received += len(batch)
        if self.policy.clients is not None:
            self.policy.clients.read()
        captured = self._read(self._refuse_short(batch))
        taken, wanted = self._take(captured, selection)
        if not taken:
            return
        frames, row = self._restore(captured, wanted)
        if len(taken) == 1:
            taken[0].session.mirror(frames, taken[0].rule[row], captured)
            return
        given = sum(_mirror_part(each, frames, captured) for each in taken)
        self.ledger.mirrored_again += given - len(frames.batch)

    def _refuse_short(self, batch: Batch) -> Batch:
        short = batch.length < ethernet.HEADER.itemsize
        if not short.any():
            return batch
        self.ledger.refused[Reason.FRAME_SHORT.slug] += int(short.sum())
        return batch.select(~short)

    def _read(self, batch: Batch) -> Captured:
        """Read flows, and leave out what would loop."""
        flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
        if not len(batch):
            return Captured(batch, flows)
        checked = self.policy.guard.check(batch, flows)
        follow_innermost(batch.memory, flows, checked.innermost)
        self._fragments.follow(batch.memory, flows)
        if checked.reason.any():
            self.ledger.refused.update(count(checked.reason))
            kept = np.flatnonzero(checked.reason == 0)
            batch, flows = batch.select(kept), flows.select(kept)
        return Captured(batch, flows)

    def _take(self, captured: Captured, selection: Selection) -> tuple[list[Taken], Column]:
        """Let the sessions choose; count what each takes and what none does.

        Returns what each takes, and the rows that at least one takes.
        """
        chosen = selection.choose(captured)
        taken = [Taken(selection.sessions[each.session], each.rows, each.rule) for each in chosen]
        present = len(captured.batch)
        wanted = _union(present, taken)
        if self._limit is not None and wanted.size > self._limit - self.ledger.cloned:
            # what comes after the last packet asked for is as if it had not come
            wanted = wanted[: self._limit - self.ledger.cloned]
            self.ledger.received -= present - int(wanted[-1]) - 1
            present = int(wanted[-1]) + 1
            taken = [each.before(present) for each in taken]
        self.ledger.cloned += wanted.size
        self.ledger.not_matched += present - wanted.size
        for each in taken:
            each.session.ledger.matched += each.rows.size
            each.session.ledger.octets += int(captured.batch.wire_length[each.rows].sum())
        return [each for each in taken if each.rows.size], wanted

    def _restore(self, captured: Captured, wanted: Column) -> tuple[Frames, Column]:
        """Return the wire-true frames of the rows ``wanted``, and of which of these each is."""
        ledger, batch = self.ledger, captured.batch
        if wanted.size < len(batch):
            batch = batch.select(wanted)
        restored = restore(batch)
        ledger.segments += len(restored.batch)
        ledger.unsegmented += restored.unsegmented
        return _frames(captured, batch, wanted, restored.batch, restored.index), restored.index


def _mirror_part(taken: Taken, frames: Frames, captured: Captured) -> int:
    """Give a session its part of the frames; return how many."""
    rule = np.full(len(captured.batch), -1, np.int64)
    rule[taken.rows] = taken.rule
    rule = rule[frames.origin]
    rows = np.flatnonzero(rule >= 0)
    taken.session.mirror(frames.select(rows), rule[rows], captured)
    return len(rows)


def _union(present: int, taken: list[Taken]) -> Column:
    """Return the rows that at least one session takes, in order."""
    if len(taken) == 1:
        return taken[0].rows
    wanted: Flags = np.zeros(present, np.bool_)
    for each in taken:
        wanted[each.rows] = True
    return np.flatnonzero(wanted)


def _frames(
    captured: Captured, batch: Batch, wanted: Column, restored: Batch, index: Column
) -> Frames:
    """Join restored frames with what was read of the packets they came from."""
    flows, origin = captured.flows, wanted[index]
    tag = flows.tag[origin]
    header_length = (flows.payload - flows.start)[origin]
    if batch.vlan is not None:  # the tag the kernel had taken out is the first again
        stripped = batch.vlan[index]
        tag = np.where(stripped != 0, stripped, tag)
        header_length = header_length + np.where(stripped != 0, ethernet.TAG.itemsize, 0)
    return Frames(
        restored, flows.ethertype[origin], tag, header_length, flows.entropy[origin], origin
    )
