"""``--forward``, ``--forward-by`` and ``--forward-raw`` of ``collector listen``: what they open."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from collector.collector import Collector, Opener
from collector.sinks.back_ends import RawForwarding, plan_raw_forwarding
from collector.sinks.forward import Forwarding, ForwardSink, plan_forwarding
from collector.sinks.forward_raw import ForwardRawSink
from collector.sinks.forwarding import Heard
from tunnelbridge.wire.encapsulation import GRE_PROTOCOL


def forward_openers(forward: Sequence[str], by: str | None, raw: Sequence[str]) -> Sequence[Opener]:
    """Return what opens the forwarding sinks; raises UsageError and UserError."""
    tunnels = [partial(_open_forward, asked) for asked in plan_forwarding(forward, by)]
    balanced = plan_raw_forwarding(raw)
    return tunnels if balanced is None else [*tunnels, partial(_open_raw, balanced)]


def _open_forward(asked: Forwarding, collector: Collector) -> ForwardSink:
    return ForwardSink(asked, _heard(collector))


def _open_raw(asked: RawForwarding, collector: Collector) -> ForwardRawSink:
    return ForwardRawSink(asked, _heard(collector))


def _heard(collector: Collector) -> Heard:
    """Return what this collector listens on, or would if it could."""
    wanted = collector.options.wanted
    return Heard(
        ports=frozenset(wanted.ports),
        protocols=frozenset(wanted.ip) | ({GRE_PROTOCOL} if wanted.gre else set()),
        addresses=tuple(collector.options.bind),
    )
