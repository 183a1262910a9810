"""The live options of ``collector listen``, and ``collector extcap`` for Wireshark's list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunnelbridge.errors import UsageError

if TYPE_CHECKING:
    from collector.collector import Collector, Opener
    from collector.sinks import Sink
    from collector.sinks.options import SinkOptions

Serve = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[HOST][:PORT]",
        help="Serve frames to Wireshark, Arkime and others on this TCP port (PCAP-over-IP,"
        " 127.0.0.1:57012); ?format=pcap-us, pcap or pcapng; repeatable.",
    ),
]
ServeFilter = Annotated[
    str | None,
    typer.Option(metavar="EXPR", help="What --serve's readers get, where ?filter= says nothing."),
]
TapPerStream = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NETNS:]PREFIX",
        help="Create a tap per stream, PREFIX0, PREFIX1 and so on, at most ?most=64; repeatable.",
    ),
]
TapQueues = Annotated[
    int,
    typer.Option(metavar="N", min=1, max=256, help="Queues of each --tap; flows keep to one."),
]
Inject = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NETNS:]IFACE", help="Send frames by this existing interface; repeatable."
    ),
]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Say nothing on standard error but errors.")
]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(extcap)


def live_openers(
    serve: Sequence[str],
    serve_filter: str | None,
    tap_per_stream: Sequence[str],
    inject: Sequence[str],
) -> list[Opener]:
    """Return what opens these sinks, in the ledger's order; raises UsageError."""
    from functools import partial

    from collector.sinks.options import parse_sink

    servers = [parse_sink(text, "--serve", more=("format",)) for text in serve]
    if serve_filter and not servers:
        raise UsageError("--serve-filter goes with --serve")
    prefixes = [
        parse_sink(text, "--tap-per-stream", more=("most",), queued=False)
        for text in tap_per_stream
    ]
    interfaces = [parse_sink(text, "--inject", queued=False) for text in inject]
    return [
        *(partial(_tap_per_stream, options) for options in prefixes),
        *(partial(_inject, options) for options in interfaces),
        *(
            partial(_serve, replace(options, expression=options.expression or serve_filter or ""))
            for options in servers
        ),
    ]


def _serve(options: SinkOptions, collector: Collector) -> Sink:
    from collector.sinks.serve import ServeSink

    return ServeSink(options, lambda number: collector.streams.ledger(number).key())


def _tap_per_stream(options: SinkOptions, collector: Collector) -> Sink:
    from collector.sinks.tap_per_stream import TapPerStreamSink

    return TapPerStreamSink(options, lambda number: collector.streams.ledger(number).key())


def _inject(options: SinkOptions, _: Collector) -> Sink:
    from collector.sinks.inject import InjectSink

    return InjectSink(options)


def extcap(
    install: Annotated[
        bool, typer.Option("--install", help="Put a launcher where Wireshark looks for it.")
    ] = False,
    uninstall: Annotated[
        bool, typer.Option("--uninstall", help="Take the launcher away again.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another folder than this user's own for extcaps."),
    ] = None,
) -> None:
    """Let Wireshark and tshark capture through the collector: tshark -i tunnelbridge."""
    from collector import extcap_folder

    if install == uninstall:
        raise UsageError("extcap: either --install or --uninstall")
    where = folder or extcap_folder.personal_folder()
    if install:
        typer.echo(f"installed {extcap_folder.install(where)}; list it with: tshark -D")
    else:
        typer.echo(f"deleted {extcap_folder.uninstall(where)}")
