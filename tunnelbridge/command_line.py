"""What the commands of both programs share: common options, and one line for a mistake."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tunnelbridge.errors import UserError

Count = Annotated[int | None, typer.Option(metavar="N", min=1, help="End after N packets.")]
Duration = Annotated[
    float | None, typer.Option(metavar="S", min=0.001, help="End after S seconds.")
]
Stats = Annotated[
    str | None,
    typer.Option(metavar="FILE|-", help="Write the ledger as JSON at the end and on SIGUSR1."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT", help="Serve Prometheus metrics here; by default 127.0.0.1."
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on standard error.")]


# Of the click that typer brings along, which has no public name.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_CLICK_EXCEPTION: type[Exception] = typer.BadParameter.__mro__[2]


def run(application: typer.Typer, name: str) -> None:
    """Run a command line; a user's mistake becomes one line on standard error and an exit code."""
    try:
        status = typer.main.get_command(application).main(prog_name=name, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except UserError as error:
        typer.echo(f"{name}: {error}", err=True)
        status = error.status
    except _CLICK_EXCEPTION as error:
        typer.echo(_one_line(name, error), err=True)
        status = 2
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(name: str, error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = name if context is None else context.command_path
    message = error.format_message().replace(": Value error, ", ": ")
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help itself
        return str(message)
    hint = f" (try: {path} --help)" if isinstance(error, _USAGE_ERROR) else ""
    return f"{path}: {' '.join(message.split())}{hint}"
