"""Where frames are delivered. Each sink accounts for itself and cannot hurt the others.

``options`` is what users may say of any sink, ``selection`` its filter and snap length, ``queued``
a writer thread behind a bounded queue. ``pcap`` is such a sink; these take frames at once and never
wait: ``tap``, ``tap_per_stream``, ``inject``, ``serve`` (with ``live_socket``, ``live_readers`` and the
``live_records`` that readers share), ``forward``, ``forward_raw`` (with ``back_ends`` and ``carried``;
``forwarding`` is what both have in common). ``flows`` reads the flows of any frames.

Capture files: ``formats`` is what they are made of, ``capture_file`` one of them, ``rotating`` the sink
for ``--pcap DIR/`` with ``limits`` and ``naming``; ``publisher`` takes finished files from there on,
with ``folder``, ``compression``, ``recovery`` and ``keeping``, whose lists are ``lines``.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, runtime_checkable

from collector.delivery import Delivery
from collector.ledger import SinkLedger


class Sink(Protocol):
    """What the collector asks of every sink; none of it blocks or raises."""

    ledger: SinkLedger

    def put(self, delivery: Delivery) -> None:
        """Take frames: all of them end in the ledger as delivered, queued, dropped or filtered.

        The frames are shared with other sinks and valid until this returns, unless the sink retains
        their slab.
        """

    def tick(self, now: int) -> None:
        """Do what is due at ``now`` (nanoseconds since the epoch); comes about once a second."""

    def is_gone(self) -> bool:
        """Tell whether nobody will ever take a frame from this sink again."""

    def close(self) -> None:
        """Finish within a second or two and give everything back."""


@runtime_checkable
class Serving(Protocol):
    """A sink that people connect to."""

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let them, from now on; called once, when the loop runs."""
