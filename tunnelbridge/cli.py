"""The ``tunnelbridge`` command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunnelbridge.command_line import Count, Duration, Stats, Verbose, run

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
    typer.Option("-i", "--interface", metavar="IFACE", help="Mirror this interface; repeatable."),
]
File = Annotated[
    Path | None,
    typer.Option("-r", "--read", metavar="FILE", help="Send the packets of a pcap or pcapng file."),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TUNNEL",
        help="Where clones go: ENCAP://REMOTE[:PORT][?option=value&...], ENCAP one of gre, gre-ip,"
        " erspan1, erspan2, erspan3, vxlan, geneve, tzsp, juniper; or a pool member's IP that --arp"
        " and --fdb lead to a tunnel. Repeatable: every target gets every clone.",
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
    Literal["fragment", "truncate", "drop"],
    typer.Option(help="What to do with a clone that the path's MTU cannot carry whole."),
]
Speed = Annotated[str, typer.Option(metavar="original|max|PPS", help="With -r: how fast to send.")]


def _options(
    interface: Interfaces = None,
    read: File = None,
    to: To = None,
    arp: Arp = None,
    fdb: Fdb = None,
    filter_: Filter = "",
    direction: Direction = "both",
    snaplen: Snaplen = None,
    mtu: Mtu = "fragment",
    speed: Speed = "original",
    count: Count = None,
    duration: Duration = None,
    stats: Stats = None,
    verbose: Verbose = False,
) -> Any:  # typer evaluates annotations; SendOptions comes late, so that --help is quick
    from tunnelbridge.config.tunnel import MtuPolicy
    from tunnelbridge.sender import SendOptions

    return SendOptions(
        interfaces=interface or (),
        file=read,
        to=to or (),
        arp=arp or (),
        fdb=fdb or (),
        expression=filter_,
        direction=direction,
        snaplen=snaplen,
        mtu=MtuPolicy(mtu),
        speed=speed,
        count=count,
        duration=duration,
        stats=stats,
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


def main() -> None:
    """Run ``tunnelbridge``."""
    run(app, "tunnelbridge")


if __name__ == "__main__":
    main()
