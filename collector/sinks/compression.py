"""Compressing a finished file, long after its packets were written."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final

from tunnelbridge.errors import UsageError, UserError

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Compression:
    """A way to compress: what names then end with, and the work itself.

    The same octets always give the same result.
    """

    suffix: str
    copy: Callable[[BinaryIO, BinaryIO], None]


def parse_compression(name: str) -> Compression:
    """Return ``gzip`` or ``zstd``; raises UsageError, and UserError where zstd is missing."""
    if name == "gzip":
        return Compression(".gz", _gzip)
    if name != "zstd":
        raise UsageError(f"--compress {name}: expected zstd or gzip")
    try:
        import zstandard
    except ImportError:
        raise UserError(
            "--compress zstd needs the package zstandard: pip install 'tunnelbridge[zstd]'"
        ) from None

    def copy(source: BinaryIO, destination: BinaryIO) -> None:
        zstandard.ZstdCompressor(write_checksum=True).copy_stream(source, destination)

    return Compression(".zst", copy)


def _gzip(source: BinaryIO, destination: BinaryIO) -> None:
    with gzip.GzipFile("", "wb", 6, destination, mtime=0) as compressed:
        shutil.copyfileobj(source, compressed, _CHUNK)
