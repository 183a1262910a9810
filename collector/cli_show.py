"""The commands that look at a running collector, or at its ledger: show, top, reconcile.

And the options of ``collector listen`` that go with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from tunnelbridge.errors import UsageError, UserError

if TYPE_CHECKING:
    from collector.refinement import Wishes

PROGRAM: Final = "collector listen"

Control = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", help="The control socket of the collector to ask; needed if several run."
    ),
]
What = Annotated[
    Literal["streams", "sinks", "refused", "health", "stats"],
    typer.Argument(metavar="WHAT", help="streams, sinks, refused, health or stats."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]
ListenControl = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", help="Put the control socket here; otherwise /run/collector/listen.sock."
    ),
]
Health = Annotated[
    bool, typer.Option("--health/--no-health", help="Watch whether the mirror is whole.")
]
Dedup = Annotated[
    str | None,
    typer.Option(
        metavar="MS", help="Leave out packets that came before within so many milliseconds."
    ),
]
Reorder = Annotated[
    str | None,
    typer.Option(metavar="MS", help="Hold frames so long to put all streams in order of time."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (show, top, reconcile):
        app.command()(command)


def refinement_wishes(
    health: bool, dedup: str | None, reorder: str | None, raw: Sequence[str] = ()
) -> Wishes:
    """Return what is to happen to frames before the sinks; raises UsageError."""
    from collector.refinement import Wishes
    from collector.windows import parse_window

    if reorder is not None and raw:
        raise UsageError("--reorder keeps frames, --forward-raw needs datagrams: leave out one")
    return Wishes(
        health,
        parse_window(dedup, "--dedup") if dedup is not None else 0,
        parse_window(reorder, "--reorder") if reorder is not None else 0,
    )


def show(what: What, control: Control = None, json: Json = False) -> None:
    """Show what a running collector has, and its counters."""
    result = asker(control)(what)
    from collector import show as tables
    from tunnelbridge.show import write_json

    write_json(result) if json else tables.write(what, result)


def top(
    control: Control = None,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Seconds between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Two looks, one plain table.")] = False,
) -> None:
    """Show streams and sinks of a running collector, with their rates, as they change."""
    ask = asker(control)
    from collector.top import sections
    from tunnelbridge.top import run

    run("collector", lambda: sections(ask), interval, once)


def reconcile(
    sender: Annotated[
        Path,
        typer.Argument(
            metavar="SENDER_STATS",
            help="A file of --stats or show stats --json, or control socket.",
        ),
    ],
    collector: Annotated[
        Path,
        typer.Argument(
            metavar="COLLECTOR_STATS",
            help="A file of --stats or show stats --json, or control socket.",
        ),
    ],
    source: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Only streams from this outer source.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Only tunnels to this address.")
    ] = None,
    json: Json = False,
) -> None:
    """Join the ledgers of a sender and a collector, and say where packets went.

    Exit code 1 if some are not accounted for.
    """
    from collector import reconcile as joining
    from collector.show import write_joint
    from tunnelbridge.show import write_json

    joint = joining.reconcile(
        joining.load(sender, "sender"), joining.load(collector, "collector"), source, to
    )
    result = joint.as_dict()
    write_json(result) if json else write_joint(result)
    if not joint.is_explained:
        raise UserError("some packets are not accounted for: see the last column")


def asker(control: Path | None) -> Callable[[str], Any]:
    """Return what asks a running collector to show something; raises UserError: there is none."""
    from tunnelbridge.control_client import ask, find

    path = find(PROGRAM, control)
    return lambda what: ask(path, {"command": "show", "what": what}, program=PROGRAM)
