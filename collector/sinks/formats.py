"""The formats of capture files: classic pcap in two resolutions, and pcapng.

pcapng tells what the others cannot: an interface for each stream, directions, what was missing before
a packet, and statistics at the end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from collector.delivery import Delivery
from tunnelbridge.batch import Column
from tunnelbridge.capture import pcapng_out
from tunnelbridge.capture.pcapng_out import Statistics
from tunnelbridge.errors import UsageError
from tunnelbridge.linux.pcap_writer import (
    MICROSECONDS,
    NANOSECONDS,
    SNAPLEN,
    file_header,
    pcap_records,
)
from tunnelbridge.records import Records

NAMES: Final = ("pcapng", "pcap", "pcap-us")


class Format(Protocol):
    """What a capture file is made of. A stream's place is its number in this file, from 0 on."""

    @property
    def suffix(self) -> str:
        """What the names of such files end with."""

    def opening(self) -> bytes:
        """Return what the file begins with."""

    def streams(self, names: Sequence[str]) -> bytes:
        """Return what must come before the first packet of streams that are new in the file."""

    def records(self, delivery: Delivery, place: Column) -> Records:
        """Return frames as records; ``place`` (n,) is each frame's stream in this file."""

    def closing(self, told: Sequence[Statistics]) -> bytes:
        """Return what the file ends with: one entry of ``told`` for each stream, in order."""


@dataclass(frozen=True, slots=True)
class Pcap:
    """Classic pcap: nothing but packets, on one interface."""

    resolution: int = NANOSECONDS
    suffix: str = ".pcap"

    def opening(self) -> bytes:
        """Return the file header."""
        return file_header(self.resolution)

    def streams(self, names: Sequence[str]) -> bytes:
        """Return nothing: the format knows no streams."""
        return b""

    def records(self, delivery: Delivery, place: Column) -> Records:
        """Return frames as records."""
        return pcap_records(delivery.frames.cut(SNAPLEN), self.resolution)

    def closing(self, told: Sequence[Statistics]) -> bytes:
        """Return nothing: the file simply ends."""
        return b""


@dataclass(frozen=True, slots=True)
class Pcapng:
    """pcapng with an interface for each stream."""

    expression: str = ""
    """The filter that frames have passed."""
    snaplen: int = SNAPLEN
    suffix: str = ".pcapng"

    def opening(self) -> bytes:
        """Return the section header: which program wrote this, on which machine."""
        system = os.uname()
        return pcapng_out.section(
            f"tunnelbridge collector {_version()}",
            host=socket.gethostname(),
            system=f"{system.sysname} {system.release}",
            hardware=system.machine,
        )

    def streams(self, names: Sequence[str]) -> bytes:
        """Return the descriptions of new interfaces."""
        return b"".join(
            pcapng_out.interface(
                name, f"frames mirrored through {name}", self.expression, self.snaplen
            )
            for name in names
        )

    def records(self, delivery: Delivery, place: Column) -> Records:
        """Return frames as enhanced packet blocks."""
        frames = delivery.frames.cut(SNAPLEN)
        return pcapng_out.packet_records(frames, place, delivery.gap, delivery.truncated)

    def closing(self, told: Sequence[Statistics]) -> bytes:
        """Return the interfaces' statistics."""
        return b"".join(pcapng_out.statistics(place, each) for place, each in enumerate(told))


def parse_format(
    name: str, expression: str = "", snaplen: int = SNAPLEN, asked: str = "--format"
) -> Format:
    """Return the format of that name (:data:`NAMES`); raises UsageError.

    ``asked`` is where the user has given it, for messages.
    """
    if name == "pcapng":
        return Pcapng(expression, min(snaplen, SNAPLEN))
    if name == "pcap":
        return Pcap()
    if name == "pcap-us":
        return Pcap(MICROSECONDS)
    raise UsageError(f"{asked} {name}: expected {', '.join(NAMES[:-1])} or {NAMES[-1]}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tunnelbridge")
    except PackageNotFoundError:
        return "unknown"
