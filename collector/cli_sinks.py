"""The sink options of ``collector listen``: what each of them opens.

Options are read at once, so that mistakes are told before anything is opened; the sinks themselves
are opened by the collector, when it has its listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from collector.cli_files import NOTHING, FileWishes, file_openers
from collector.collector import Collector, Opener
from collector.sinks import Sink
from collector.sinks.options import SinkOptions, parse_sink
from collector.sinks.tap import TapSink
from tunnelbridge.errors import UsageError


def openers(
    pcap: Sequence[str],
    tap: Sequence[str],
    stats: str | None,
    tap_queues: int = 1,
    files: FileWishes = NOTHING,
) -> Sequence[Opener]:
    """Return what opens the sinks that were asked for, in the ledger's order; raises UsageError."""
    if tap_queues > 1 and not tap:
        raise UsageError("--tap-queues goes with --tap")
    taps = [parse_sink(text, "--tap", queued=False) for text in tap]
    pcaps = [parse_sink(text, "--pcap", ("format",)) for text in pcap]
    tap_sink = TapSink if tap_queues == 1 else partial(TapSink, queues=tap_queues)
    outputs = [options.target for options in pcaps].count("-")
    if outputs and stats == "-":
        raise UsageError("packets and --stats cannot share standard output")
    if outputs > 1:
        raise UsageError("--pcap -: only one of them can have standard output")
    return (
        *(partial(_open, tap_sink, options) for options in taps),
        *file_openers(pcaps, files),
    )


def _open(make: Callable[[SinkOptions], Sink], options: SinkOptions, _: Collector) -> Sink:
    return make(options)
