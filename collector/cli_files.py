"""The options of ``--pcap``, and ``collector verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tunnelbridge.errors import UsageError

if TYPE_CHECKING:
    from collector.collector import Collector, Opener
    from collector.sinks import Sink
    from collector.sinks.formats import Format
    from collector.sinks.options import SinkOptions
    from collector.sinks.rotating import FileOptions

Rotate = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE,TIME,N",
        help="End the files of --pcap DIR/ at this size, time (by the clock) or number of frames:"
        " any of 100MB,60s,1M (default: 100MB,60s).",
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE,TIME,N",
        help="Delete the oldest files of ours in DIR beyond this size, age or number:"
        " any of 50GB,7d,1000; also when the disk is full.",
    ),
]
Compress = Annotated[
    str | None,
    typer.Option(metavar="zstd|gzip", help="Compress files in DIR once they are complete."),
]
PerStream = Annotated[
    bool, typer.Option("--per-stream", help="Write files in DIR for each stream apart.")
]
Name = Annotated[
    str | None,
    typer.Option(
        metavar="TEMPLATE",
        help="Names of files in DIR, of {time}, {stream} and {sequence}"
        " (default: {time}-{sequence}).",
    ),
]
FileFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="pcapng|pcap|pcap-us",
        help="The format of --pcap: pcapng, or pcap with nano- or microseconds"
        " (default: pcapng in DIR/, pcap elsewhere).",
    ),
]
ManifestOption = Annotated[
    bool,
    typer.Option(
        "--manifest", help="List files in DIR with their SHA-256, for: collector verify DIR."
    ),
]


@dataclass(frozen=True, slots=True)
class FileWishes:
    """What the command line says of capture files; None and False where it says nothing."""

    form: str | None = None
    rotate: str | None = None
    keep: str | None = None
    compress: str | None = None
    per_stream: bool = False
    name: str | None = None
    manifest: bool = False


NOTHING: Final = FileWishes()


def file_openers(pcap: Sequence[SinkOptions], wishes: FileWishes = NOTHING) -> Sequence[Opener]:
    """Return what opens the ``--pcap`` sinks; raises UsageError and UserError."""
    if wishes.form is not None and not pcap:
        raise UsageError("--format needs --pcap")
    if not any(is_folder(options.target) for options in pcap):
        for each in fields(wishes):
            if each.name != "form" and getattr(wishes, each.name):
                option = each.name.replace("_", "-")
                raise UsageError(f"--{option} needs a folder: --pcap DIR/")
    return [_opener(options, wishes) for options in pcap]


def is_folder(target: str) -> bool:
    """Tell whether a target means a folder: it is one, or is written as one."""
    return target.endswith("/") or (target != "-" and Path(target).is_dir())


def _opener(options: SinkOptions, wishes: FileWishes) -> Opener:
    from collector.sinks.formats import parse_format

    folder = is_folder(options.target)
    own = options.more.get("format")
    name = own or wishes.form or ("pcapng" if folder else "pcap")
    asked = f"--pcap {options.target}: format" if own else "--format"
    form = parse_format(name, options.expression, options.snaplen, asked)
    if not folder:
        return partial(_open_file, options, form)
    return partial(_open_folder, options, _file_options(form, wishes))


def _file_options(form: Format, wishes: FileWishes) -> FileOptions:
    from collector.sinks.compression import parse_compression
    from collector.sinks.limits import parse_limits
    from collector.sinks.naming import Naming
    from collector.sinks.rotating import ROTATE, FileOptions

    Naming(wishes.name, wishes.per_stream)  # a mistake is told before anything is opened
    return FileOptions(
        form,
        ROTATE if wishes.rotate is None else parse_limits(wishes.rotate, "--rotate"),
        None if wishes.keep is None else parse_limits(wishes.keep, "--keep"),
        None if wishes.compress is None else parse_compression(wishes.compress),
        wishes.per_stream,
        wishes.name,
        wishes.manifest,
    )


def _open_file(options: SinkOptions, form: Format, collector: Collector) -> Sink:
    from collector.sinks.pcap import PcapSink

    return PcapSink(options, form, collector.streams.ledger)


def _open_folder(options: SinkOptions, files: FileOptions, collector: Collector) -> Sink:
    from collector.sinks.rotating import RotatingSink

    return RotatingSink(options, files, collector.streams.ledger)


def register(app: typer.Typer) -> None:
    """Add ``verify`` to ``app``."""
    app.command()(verify)


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where --pcap DIR/ --manifest has written.")
    ],
) -> None:
    """Check files against their manifest: one line for each problem, and exit code 1."""
    from collector.manifest import Verification

    check = Verification(folder)
    problems = 0
    for problem in check.problems():
        typer.echo(problem)
        problems += 1
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{check.files} files are as they were written, and the chain is whole")
    typer.echo(f"last in the chain: {check.last}")
