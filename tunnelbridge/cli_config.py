"""The commands about configuration files: ``config schema``, ``config check``, ``import``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the TOML to FILE.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    config = typer.Typer(
        help="Check configuration files, and what can be in them.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
    )
    config.command()(schema)
    config.command()(check)
    app.add_typer(config, name="config")
    app.command("import")(import_)


def schema() -> None:
    """Print the JSON schema of the configuration file."""
    import json

    from tunnelbridge.config.load import schema as of_config

    typer.echo(json.dumps(of_config(), indent=2, ensure_ascii=False))


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A configuration in TOML.")],
) -> None:
    """Say what a configuration file holds, or every mistake in it; touches no interface."""
    from tunnelbridge.config.load import load

    mirror = load(file)
    for line in mirror.warnings():
        typer.echo(f"{file}: {line}", err=True)
    typer.echo("\n".join(mirror.summary()))


def import_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="What FILE is: aws, huawei, nsx, cn2 or ovs.")
    ],
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="The document; - reads standard input.")
    ],
    output: Output = None,
) -> None:
    """Print another system's mirrors as our TOML, and on standard error what that cannot say."""
    from tunnelbridge.importers import import_text

    toml, issues = import_text(kind, _read(file), "standard input" if file == "-" else file)
    if output is None:
        typer.echo(toml, nl=False)
    else:
        _write(output, toml)
    for line in issues:
        typer.echo(line, err=True)


def _read(file: str) -> str:
    from tunnelbridge.errors import UsageError

    try:
        octets = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return octets.decode()
    except OSError as error:
        raise UsageError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 at octet {error.start}") from None


def _write(output: Path, toml: str) -> None:
    from tunnelbridge.errors import UserError

    try:
        output.write_text(toml)
    except OSError as error:
        raise UserError(f"{output}: {(error.strerror or str(error)).lower()}") from None
