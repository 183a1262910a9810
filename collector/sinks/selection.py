"""Which frames a sink gets, and how much of each: its filter and its snap length."""

from __future__ import annotations

import numpy as np

from collector.delivery import Delivery
from collector.ledger import SinkLedger
from collector.sinks.options import LONGEST, SinkOptions
from tunnelbridge import bpf
from tunnelbridge.linux.libpcap import compile_filter


class Selection:
    """The filter and the snap length of one sink.

    Raises UsageError: the filter expression is wrong; UserError: there is no libpcap.
    """

    def __init__(self, options: SinkOptions) -> None:
        self._snaplen = options.snaplen
        self._program = compile_filter(options.expression) if options.expression.strip() else None

    def apply(self, delivery: Delivery, ledger: SinkLedger) -> Delivery:
        """Return what the sink wants; what it does not want is counted as filtered."""
        if self._program is not None and len(delivery):
            wanted = bpf.run(self._program, delivery.frames) > 0
            if not wanted.all():
                delivery = delivery.select(np.flatnonzero(wanted))
                with ledger.lock:
                    ledger.filtered += len(wanted) - len(delivery)
        return delivery if self._snaplen >= LONGEST else delivery.cut(self._snaplen)
