"""A captured batch and what was read of it; what few sessions ask for is read when first asked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column
from tunnelbridge.clone.innermost import source_hash
from tunnelbridge.clone.nat import with_echoes
from tunnelbridge.wire.five_tuple import FiveTuples, read_five_tuples
from tunnelbridge.wire.flow import Flows

Words = npt.NDArray[np.uint64]


@dataclass(slots=True)
class Captured:
    """One batch on its way through the policy; columns of ``flows`` have its rows."""

    batch: Batch
    flows: Flows
    _tuples: FiveTuples | None = field(default=None, init=False)
    _source_hash: Words | None = field(default=None, init=False)

    @property
    def tuples(self) -> FiveTuples:
        """Addresses, ports and protocol of each packet."""
        if self._tuples is None:
            self._tuples = read_five_tuples(self.batch.memory, self.flows)
        return self._tuples

    @property
    def source_hash(self) -> Words:
        """A hash of each packet's source address alone, uint64 (n,)."""
        if self._source_hash is None:
            self._source_hash = source_hash(self.batch.memory, self.flows)
        return self._source_hash

    def echo_tuples_of(self, rows: Column) -> FiveTuples:
        """Return the same of ``rows``, which may repeat; echo messages have ports there."""
        tuples = with_echoes(self.batch.memory, self.flows, self.tuples)
        return FiveTuples(*(getattr(tuples, each.name)[rows] for each in fields(tuples)))
