"""The ``collector`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from collector import cli_files, cli_live, cli_show
from tunnelbridge.command_line import Count, Duration, Metrics, Stats, Verbose, run

app = typer.Typer(
    help="Collect mirrored traffic: take the tunnels off and hand out the frames.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Udp = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND:PORT",
        help="Listen on this UDP port for vxlan, vxlan-gpe, geneve, tzsp, juniper, mpls or gre.",
    ),
]
Time = Annotated[
    Literal["arrival", "source"],
    typer.Option(help="Frames have the time they came at, or what ERSPAN III and others tell."),
]
Levels = Annotated[
    int, typer.Option(min=1, max=4, help="Tunnels inside tunnels to take off, at most.")
]


@app.command()
def listen(
    bind: Annotated[
        list[str] | None, typer.Option(metavar="ADDR", help="Listen on this address; repeatable.")
    ] = None,
    gre: Annotated[
        bool | None, typer.Option("--gre/--no-gre", help="GRE and ERSPAN (needs CAP_NET_RAW).")
    ] = None,
    vxlan: Annotated[
        list[int] | None, typer.Option(metavar="PORT", min=1, max=65535, help="VXLAN on this port.")
    ] = None,
    geneve: Annotated[
        list[int] | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="GENEVE on this port."),
    ] = None,
    udp: Udp = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="ipip, 6in4, etherip or mpls directly in IP."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR,NAME=N-M",
            help="Take only these sources and tunnels, as 10.0.0.0/8,vni=1-99; names: vni, erspan,"
            " key; repeatable.",
        ),
    ] = None,
    pcap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|DIR/|-",
            help="Write frames to this file, to files in this folder, or stdout; repeatable.",
        ),
    ] = None,
    file_format: cli_files.FileFormat = None,
    rotate: cli_files.Rotate = None,
    keep: cli_files.Keep = None,
    compress: cli_files.Compress = None,
    per_stream: cli_files.PerStream = False,
    name: cli_files.Name = None,
    manifest: cli_files.ManifestOption = False,
    tap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NETNS:]NAME", help="Create this tap and write frames to it; repeatable."
        ),
    ] = None,
    forward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TUNNEL",
            help="Send frames on in this tunnel, as tunnelbridge send --to does; repeatable.",
        ),
    ] = None,
    forward_by: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="Several --forward share frames by flow or round-robin, or get all."
        ),
    ] = None,
    forward_raw: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Pass datagrams on unchanged, by the flow inside; repeatable, with ?weight=N.",
        ),
    ] = None,
    tap_queues: cli_live.TapQueues = 1,
    tap_per_stream: cli_live.TapPerStream = None,
    inject: cli_live.Inject = None,
    serve: cli_live.Serve = None,
    serve_filter: cli_live.ServeFilter = None,
    levels: Levels = 4,
    time: Time = "arrival",
    dedup: cli_show.Dedup = None,
    reorder: cli_show.Reorder = None,
    health: cli_show.Health = True,
    control: cli_show.ListenControl = None,
    metrics: Metrics = None,
    heartbeat: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDR:]PORT", help="Answer the health checks of senders on this UDP port."
        ),
    ] = None,
    count: Count = None,
    duration: Duration = None,
    stats: Stats = None,
    verbose: Verbose = False,
    quiet: cli_live.Quiet = False,
) -> None:
    """Receive tunnels and deliver the frames in them until interrupted.

    Without a listener option everything that can be opened is: GRE and ERSPAN, VXLAN 4789 and 8472,
    VXLAN-GPE 4790, GENEVE 6081, TZSP 37008, Juniper 8099, MPLS-in-UDP 6635, GRE-in-UDP 4754.

    Every sink may have a filter, a snap length and a queue of its own:
    --pcap 'x.pcap?filter=tcp port 80&snaplen=256&queue=64MB'.
    """
    from collector.cli_forward import forward_openers
    from collector.cli_sinks import openers
    from collector.collector import ListenOptions
    from collector.collector import listen as collect
    from collector.listener import parse_wanted
    from tunnelbridge import console

    console.configure_logging(verbose, quiet)
    wanted = parse_wanted(gre, vxlan or (), geneve or (), udp or (), ip or ())
    files = cli_files.FileWishes(file_format, rotate, keep, compress, per_stream, name, manifest)
    live = cli_live.live_openers(serve or (), serve_filter, tap_per_stream or (), inject or ())
    refine = cli_show.refinement_wishes(health, dedup, reorder, forward_raw or ())
    forwarding = forward_openers(forward or (), forward_by, forward_raw or ())
    collect(
        ListenOptions(
            wanted,
            bind=bind or (),
            allow=allow or (),
            sinks=(*openers(pcap or (), tap or (), stats, tap_queues, files), *live, *forwarding),
            levels=levels,
            source_time=time == "source",
            count=count,
            duration=duration,
            stats=stats,
            heartbeat=heartbeat,
            refine=refine,
            control=control or True,
            metrics=metrics,
            quiet=quiet,
        )
    )


@app.command()
def decap(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A pcap or pcapng file.")],
    destination: Annotated[
        str, typer.Argument(metavar="OUT", help="The pcap file to write, or -.")
    ],
    udp: Udp = None,
    levels: Levels = 4,
    time: Time = "arrival",
    stats: Stats = None,
    verbose: Verbose = False,
) -> None:
    """Take the tunnels off the packets of a capture file."""
    from collector.files import decap as run_decap
    from collector.listener import parse_wanted
    from tunnelbridge import console

    console.configure_logging(verbose)
    ports = parse_wanted(None, (), (), udp or (), ()).ports
    run_decap(source, destination, levels, ports, stats, time == "source")


cli_show.register(app)
cli_files.register(app)
cli_live.register(app)


def main() -> None:
    """Run ``collector``."""
    run(app, "collector")


if __name__ == "__main__":
    main()
