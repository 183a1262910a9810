"""Compare what a collector wrote with what was on the wire: plain code, a judge of its own.

It shares nothing with the programs it judges, and goes through files record by record.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MAGICS = {0xA1B2C3D4: "microseconds", 0xA1B23C4D: "nanoseconds"}


class Frame(NamedTuple):
    """A captured frame and how long it was on the wire."""

    octets: bytes
    wire_length: int


def read(path: Path) -> list[Frame]:
    """Return the frames of a pcap file; a last record that is still being written is left out."""
    data = path.read_bytes() if path.exists() else b""
    if len(data) < 24:
        return []
    order = next((o for o in "<>" if struct.unpack(o + "I", data[:4])[0] in MAGICS), None)
    if order is None:
        raise ValueError(f"{path} is not a pcap file")
    frames, at = [], 24
    while at + 16 <= len(data):
        _, _, captured, wire_length = struct.unpack(order + "4I", data[at : at + 16])
        if at + 16 + captured > len(data):
            break
        frames.append(Frame(data[at + 16 : at + 16 + captured], wire_length))
        at += 16 + captured
    return frames


def holds(frames: Sequence[Frame], octets: bytes) -> bool:
    """Tell whether some frame carries ``octets``."""
    return any(octets in frame.octets for frame in frames)


def tcp(frames: Sequence[Frame]) -> list[Frame]:
    """Return the frames that are TCP in IPv4."""
    return [f for f in frames if f.octets[12:14] == b"\x08\x00" and f.octets[23] == 6]


def between(frames: Sequence[Frame], first: bytes, last: bytes) -> list[Frame]:
    """Return the frames after the one that carries ``first`` and before that with ``last``."""
    begin = next(i for i, frame in enumerate(frames) if first in frame.octets)
    end = next(i for i, frame in enumerate(frames) if last in frame.octets)
    return list(frames[begin + 1 : end])


def readdressed(frames: Sequence[Frame], mac: bytes) -> list[Frame]:
    """Return the frames as they are when sent to ``mac`` instead: the first six octets differ."""
    return [Frame(mac + frame.octets[6:], frame.wire_length) for frame in frames]


def flow(octets: bytes) -> bytes:
    """Return what tells one flow and direction from another: within it, order means something."""
    kind = octets[12:14]
    if kind == b"\x08\x00":
        ports = 14 + 4 * (octets[14] & 15)
        return octets[6:14] + octets[23:24] + octets[26:34] + octets[ports : ports + 4]
    if kind == b"\x86\xdd":
        return octets[6:14] + octets[20:21] + octets[22:58]
    return octets[6:14]


@dataclass(frozen=True)
class Difference:
    """How two captures differ; nothing in it when they do not."""

    missing: list[Frame]
    extra: list[Frame]
    flows_out_of_order: int

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.flows_out_of_order)

    def __str__(self) -> str:
        parts = []
        for frames, what in ((self.missing, "missing"), (self.extra, "not of the wire")):
            if frames:
                start = frames[0].octets[:54].hex()
                parts.append(
                    f"{len(frames)} {what} (first: {frames[0].wire_length} octets, {start})"
                )
        if self.flows_out_of_order:
            parts.append(f"{self.flows_out_of_order} flows in another order")
        return ", ".join(parts)


def difference(expected: Sequence[Frame], got: Sequence[Frame]) -> Difference:
    """Compare every octet and every length, and the order within each flow and direction."""
    wanted, found = Counter(expected), Counter(got)
    missing, extra = wanted - found, found - wanted
    out_of_order = 0
    if not missing and not extra:
        ours, theirs = _by_flow(expected), _by_flow(got)
        out_of_order = sum(ours[key] != theirs[key] for key in ours)
    return Difference(list(missing.elements()), list(extra.elements()), out_of_order)


def _by_flow(frames: Sequence[Frame]) -> dict[bytes, list[Frame]]:
    flows = defaultdict(list)
    for frame in frames:
        flows[flow(frame.octets)].append(frame)
    return flows
