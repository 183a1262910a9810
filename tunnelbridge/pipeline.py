"""The path of one batch through the sender, stage by stage, in order.

1. frames too short for a MAC header are refused
2. the filter, where the kernel did not apply it (files)
3. flows are read; the loop guard refuses what would come round again
4. what the kernel left undone is restored: tags, checksums, segmentation
5. the snap length cuts
6. every tunnel gets its clones
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column
from tunnelbridge.clone import bpf
from tunnelbridge.clone.guard import LoopGuard
from tunnelbridge.ledger import SenderLedger
from tunnelbridge.restore.restore import restore
from tunnelbridge.tunnel import Frames, Tunnel
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.flow import Flows, read_flows
from tunnelbridge.wire.reasons import Reason, count


class Pipeline:
    """Clones batches of captured frames into tunnels and keeps the ledger."""

    def __init__(
        self,
        tunnels: list[Tunnel],
        guard: LoopGuard,
        snaplen: int | None = None,
        program: npt.NDArray[Any] | None = None,
        limit: int | None = None,
    ) -> None:
        self.tunnels = tunnels
        self.ledger = SenderLedger(tunnels=[tunnel.ledger for tunnel in tunnels])
        self._guard = guard
        self._snaplen = snaplen
        self._program = program
        self._limit = limit

    @property
    def is_done(self) -> bool:
        """As many packets were cloned as were asked for."""
        return self._limit is not None and self.ledger.cloned >= self._limit

    def process(self, batch: Batch) -> None:
        """Take a batch through all stages; its memory may be reused afterwards."""
        if self.is_done:
            return
        ledger = self.ledger
        ledger.received += len(batch)
        batch = self._refuse_short(batch)
        if self._program is not None:
            batch = self._match(self._program, batch)
        if not len(batch):
            return
        flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
        reason = self._guard.check(batch, flows)
        kept = np.arange(len(batch))
        if reason.any():
            ledger.refused.update(count(reason))
            kept = np.flatnonzero(reason == 0)
            batch = batch.select(kept)
        if self._limit is not None:
            batch, kept = self._stop_at(self._limit, batch, kept)
        ledger.cloned += len(batch)
        restored = restore(batch)
        ledger.segments += len(restored.batch)
        ledger.unsegmented += restored.unsegmented
        frames = self._frames(batch, flows, kept, restored.batch, restored.index)
        for tunnel in self.tunnels:
            tunnel.send(frames)

    def _stop_at(self, limit: int, batch: Batch, kept: Column) -> tuple[Batch, Column]:
        """Leave out what comes after the last packet asked for, as if it had not come."""
        wanted = np.arange(min(limit - self.ledger.cloned, len(batch)))
        self.ledger.received -= len(batch) - len(wanted)
        return batch.select(wanted), kept[wanted]

    def _refuse_short(self, batch: Batch) -> Batch:
        short = batch.length < ethernet.HEADER.itemsize
        if not short.any():
            return batch
        self.ledger.refused[Reason.FRAME_SHORT.slug] += int(short.sum())
        return batch.select(~short)

    def _match(self, program: npt.NDArray[Any], batch: Batch) -> Batch:
        matches = bpf.run(program, batch) != 0
        if matches.all():
            return batch
        self.ledger.not_matched += int((~matches).sum())
        return batch.select(matches)

    def _frames(
        self, captured: Batch, flows: Flows, kept: Column, restored: Batch, index: Column
    ) -> Frames:
        """Join restored frames with what was read of the frames they came from."""
        origin = kept[index]
        tag = flows.tag[origin]
        header_length = (flows.payload - flows.start)[origin]
        if captured.vlan is not None:  # the tag the kernel had taken out is the first again
            stripped = captured.vlan[index]
            tag = np.where(stripped != 0, stripped, tag)
            header_length = header_length + np.where(stripped != 0, ethernet.TAG.itemsize, 0)
        if self._snaplen is not None:
            restored = restored.cut(self._snaplen)
        return Frames(restored, flows.ethertype[origin], tag, header_length, flows.entropy[origin])
