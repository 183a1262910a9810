"""``collector extcap``: the collector in Wireshark's list of interfaces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunnelbridge.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(extcap)


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
