"""The ``tunnelbridge`` command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunnelbridge import cli_config, cli_control
from tunnelbridge.command_line import Count, Duration, Metrics, Stats, Verbose, run

if TYPE_CHECKING:
    from tunnelbridge.sender import SendOptions

app = typer.Typer(
    help="Clone packets from interfaces or capture files into tunnels to your analysers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Interfaces = Annotated[
    list[str] | None,
    typer.Option(
        "-i",
        "--interface",
        metavar="[NETNS:]IFACE",
        help="Mirror this interface, or all that match a glob (veth*), or any; repeatable.",
    ),
]
File = Annotated[
    Path | None,
    typer.Option("-r", "--read", metavar="FILE", help="Send the packets of a pcap or pcapng file."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Sessions, filters, pools and tables in a TOML file, in place of options.",
    ),
]
Control = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Socket for show, enable, disable and reload (default: one named like --config's file).",
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TUNNEL",
        help="Where clones go: ENCAP://REMOTE[:PORT][?option=value&...], ENCAP one of gre, gre-ip,"
        " erspan1, erspan2, erspan3, vxlan, geneve, tzsp, juniper; ether://INTERFACE for layer 2; or a"
        " pool member's IP that --arp and --fdb lead to a tunnel. Repeatable: every target gets every"
        " clone.",
    ),
]
Arp = Annotated[
    list[str] | None, typer.Option(metavar="IP=MAC", help="Static ARP entry of a pool member.")
]
Fdb = Annotated[
    list[str] | None,
    typer.Option(metavar="MAC=TUNNEL", help="Static FDB entry: the tunnel behind a MAC address."),
]
Filter = Annotated[
    str, typer.Option("--filter", metavar="EXPR", help="tcpdump expression: what to clone.")
]
Direction = Annotated[
    Literal["both", "in", "out"], typer.Option(help="Which packets of an interface.")
]
Snaplen = Annotated[
    int | None,
    typer.Option(metavar="N", min=14, max=262144, help="Clone only the first N octets of a frame."),
]
Mtu = Annotated[
    Literal["fragment", "truncate", "drop"] | None,
    typer.Option(
        help="What to do with a clone that the path's MTU cannot carry whole (default: fragment)."
    ),
]
Speed = Annotated[str, typer.Option(metavar="original|max|PPS", help="With -r: how fast to send.")]


def _options(
    interface: Interfaces = None,
    read: File = None,
    config: Config = None,
    to: To = None,
    arp: Arp = None,
    fdb: Fdb = None,
    filter_: Filter = "",
    direction: Direction = "both",
    snaplen: Snaplen = None,
    mtu: Mtu = None,
    speed: Speed = "original",
    count: Count = None,
    duration: Duration = None,
    stats: Stats = None,
    control: Control = None,
    metrics: Metrics = None,
    verbose: Verbose = False,
) -> Any:  # typer evaluates annotations; SendOptions comes late, so that --help is quick
    from tunnelbridge.config.tunnel import MtuPolicy
    from tunnelbridge.sender import SendOptions

    return SendOptions(
        interfaces=interface or (),
        file=read,
        config=config,
        to=to or (),
        arp=arp or (),
        fdb=fdb or (),
        expression=filter_,
        direction=direction,
        snaplen=snaplen,
        mtu=None if mtu is None else MtuPolicy(mtu),
        speed=speed,
        count=count,
        duration=duration,
        stats=stats,
        control=control,
        metrics=metrics,
        verbose=verbose,
    )


def _command(work: Callable[[SendOptions], None]) -> Callable[[SendOptions], None]:
    """Make ``work`` a command that takes all options of ``send``."""

    @functools.wraps(_options)
    def command(**values: Any) -> None:
        work(_options(**values))

    command.__name__, command.__doc__ = work.__name__, work.__doc__
    app.command()(command)
    return work


@_command
def send(options: SendOptions) -> None:
    """Clone packets into tunnels until interrupted, or to the end of the file."""
    from tunnelbridge import console, sender

    console.configure_logging(options.verbose)
    sender.send(options)


@_command
def check(options: SendOptions) -> None:
    """Say what send with the same options would do, and by which way; send nothing."""
    from tunnelbridge.check import check as report

    typer.echo("\n".join(report(options)))


@app.command()
def explain(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The configuration to explain by.")],
    packet: Annotated[
        str | None,
        typer.Argument(metavar="PACKET", help="As 'tcp 192.0.2.1:1234 > 198.51.100.2:80'."),
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option("-r", "--read", metavar="FILE", help="Take the packet from a capture file."),
    ] = None,
    number: Annotated[
        int, typer.Option("-n", metavar="K", min=1, help="With -r: which packet, from 1.")
    ] = 1,
    direction: Annotated[
        Literal["in", "out"] | None,
        typer.Option(help="How it passes the source (default: in, or what the file says)."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "-i", "--interface", metavar="[NETNS:]IFACE",
            help="The interface it is seen on; without it, any that a session names.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Say what becomes of one packet: session, rule, pool, member, ARP, FDB, tunnel, route, MTU."""
    from tunnelbridge import explain as explaining

    options = explaining.ExplainOptions(config, packet, read, number, direction, source)
    typer.echo("\n".join(explaining.explain(options)))


cli_control.register(app)
cli_config.register(app)


def main() -> None:
    """Run ``tunnelbridge``."""
    run(app, "tunnelbridge")


if __name__ == "__main__":
    main()
