"""The commands that talk to a running ``tunnelbridge send``: show, top, enable, disable, reload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from tunnelbridge.errors import UsageError

PROGRAM: Final = "tunnelbridge send"
RELOAD_TIMEOUT: Final = 30.0
"""Seconds; a reload opens sockets and looks up routes before it answers."""

Control = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="The control socket of the sender to ask; needed if several run.",
        readable=False,  # asking tells more
    ),
]
Session = Annotated[str, typer.Argument(metavar="SESSION", help="Its name in the configuration.")]
What = Annotated[
    Literal["sessions", "pools", "arp", "fdb", "tunnels", "stats"],
    typer.Argument(metavar="WHAT", help="sessions, pools, arp, fdb, tunnels or stats."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (show, top, enable, disable, reload):
        app.command()(command)


def show(
    what: What,
    control: Control = None,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    reset_stats: Annotated[
        bool, typer.Option("--reset-stats", help="With stats: count from zero afterwards.")
    ] = False,
) -> None:
    """Show what a running send has, and its counters."""
    if reset_stats and what != "stats":
        raise UsageError(f"--reset-stats goes with show stats, not with show {what}")
    request: dict[str, Any] = {"command": "show", "what": what}
    if reset_stats:
        request["reset"] = True
    result = _ask(control, request)
    from tunnelbridge import show as tables

    tables.write_json(result) if json else tables.write(what, result)


def top(
    control: Control = None,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Seconds between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Two looks, one plain table.")] = False,
) -> None:
    """Show sources, members and tunnels of a running send, with their rates, as they change."""
    from tunnelbridge.control_client import ask, find
    from tunnelbridge.top import run, sender_sections

    path, request = find(PROGRAM, control), {"command": "show", "what": "stats"}
    run(
        "tunnelbridge", lambda: sender_sections(ask(path, request, program=PROGRAM)), interval, once
    )


def enable(session: Session, control: Control = None) -> None:
    """Let a session or policy mirror."""
    _ask(control, {"command": "enable", "session": session})
    typer.echo(f"{session} is enabled")


def disable(session: Session, control: Control = None) -> None:
    """Keep a session or policy from mirroring.

    Until it is enabled again, or the sender restarted.
    """
    _ask(control, {"command": "disable", "session": session})
    typer.echo(f"{session} is disabled")


def reload(control: Control = None) -> None:
    """Let a running send read its file again.

    What changed is printed; with a mistake in the file nothing changes.
    """
    changes = _ask(control, {"command": "reload"}, RELOAD_TIMEOUT)["changes"]
    typer.echo("\n".join(changes) if changes else "nothing changed")


def _ask(control: Path | None, request: dict[str, Any], timeout: float = 5.0) -> Any:
    from tunnelbridge.control_client import ask, find

    return ask(find(PROGRAM, control), request, timeout, PROGRAM)
