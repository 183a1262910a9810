"""Tables of octets that other people specified, and how a row of one is checked.

Every ``test_<format>.py`` has ``VECTORS`` (sent and read), ``ACCEPTED`` (read, never sent) and
``REJECTED`` (with the reason's slug). Octets are hex, one field or word a line, comments behind ``#``.
``columns`` is all that ``decode`` may tell: offsets count from the first octet of the row, ``payload``
is the row's length and ``end`` that of everything unless the row says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tunnelbridge.batch import INBOUND, OUTBOUND, from_packets
from tunnelbridge.wire.encapsulation import Encapsulation
from tunnelbridge.wire.layer import Clones, Kind, Layer
from tunnelbridge.wire.reasons import Reason

Decode = Callable[..., Layer]
Columns = dict[str, Any]

PACKET = bytes.fromhex(  # tcpdump tests/nsh-over-vxlan-gpe.pcap: the innermost packet
    "45000020 d4310000 ff116647 c0a80001 c0a80002 2710 4e20 000c 2178 74657374"
)
FRAME = bytes.fromhex("02000a0a0a0a 02000b0b0b0b 0800") + PACKET

_OFFSETS = ("payload", "end", "claimed_end")
_SURROUNDINGS = [
    (b"", b""),
    (b"\x00" * 3, b"\x00" * 64),
    (b"\xff" * 4, b"\xff" * 64),
    (b"\xa5" * 33, b"\x5a" * 64),
    (b"\x11" * 64, b"\x08\x00" * 32),
    (b"\x11" * 7, b""),
]


def octets(text: str) -> bytes:
    """Return the octets of commented hex."""
    return bytes.fromhex(re.sub(r"#.*", "", text))


def names(rows: list[Any]) -> list[str]:
    """Return the tests' names: each row's source."""
    return [str(row[0]) for row in rows]


def told(layer: Layer, i: int, start: int = 0) -> Columns:
    """Return what one packet's header tells: no column that is None, unknown, 0 tags or False."""
    if layer.reason[i]:
        return {"reason": Reason(layer.reason[i]).slug}
    columns: Columns = {}
    for name in Layer.__slots__:
        column = getattr(layer, name)
        if column is None or name == "reason":
            continue
        value = column[i].item()
        if name in _OFFSETS:
            value -= start
        elif name in ("kind", "encapsulation"):
            value = Kind(value)
        elif (name == "tag" and not value) or value is False or value == -1:
            continue
        columns[name] = value
    return columns


def read(decode: Decode, packet: bytes, *more: Any) -> Columns:
    """Decode one packet among octets that are not its own; what those are must not matter."""
    results = []
    for before, after in _SURROUNDINGS:
        memory = np.frombuffer(before + packet + after, np.uint8)
        start = np.array([len(before)])
        layer = decode(memory, start, start + len(packet), *more)
        results.append(told(layer, 0, len(before)))
    assert all(result == results[0] for result in results), "reads octets outside the packet"
    return results[0]


def check_reads(
    decode: Decode, text: str, columns: Columns, *more: Any, after: bytes = FRAME
) -> None:
    """Check all columns that ``decode`` reads from a row with ``after`` behind it."""
    header = octets(text)
    expected = {"payload": len(header), "end": len(header) + len(after), **columns}
    assert read(decode, header + after, *more) == expected


def check_rejects(decode: Decode, text: str, slug: str, *more: Any) -> None:
    """Check that a row's octets are refused for one reason."""
    assert read(decode, octets(text), *more) == {"reason": slug}


def clones(
    count: int,
    frame: bytes = FRAME,
    *,
    tag: int = 0,
    truncated: bool = False,
    sequence: int = 0,
    ethertype: int = 0x0800,
    entropy: int = 0,
    wire_length: int | None = None,
    timestamp: int = 0,
    direction: int = INBOUND,
) -> Clones:
    """Return ``count`` clones, all the same, as a tunnel hands them to its headers."""
    batch = from_packets([frame] * count, timestamp, direction)
    if wire_length is not None:
        batch.wire_length[:] = wire_length
    return Clones(
        batch=batch,
        length=batch.total_length,
        entropy=np.full(count, entropy),
        tag=np.full(count, tag),
        truncated=np.full(count, truncated),
        sequence=np.full(count, sequence),
        ethertype=np.full(count, ethertype),
    )


LOUD: Columns = {
    "frame": b"\xff" * 1400,
    "tag": 0xFFFFFFFF,
    "truncated": True,
    "sequence": 0xFFFFFFFF,
    "ethertype": 0x86DD,
    "entropy": 0xFFFF,
    "wire_length": 0xFFFF,
    "timestamp": 0x7FFFFFFFFFFFFFFF,
    "direction": OUTBOUND,
}
"""Clones of the batch before: whatever a patch forgets to write again is left over from these."""


def mix(one: Clones, other: Clones, chosen: np.ndarray[Any, Any]) -> Clones:
    """Return clones of which ``chosen`` are as in ``one`` and the rest as in ``other``."""

    def pick(a: Any, b: Any) -> Any:
        return np.where(chosen, a, b)

    batch = from_packets(
        [(one if c else other).batch.octets(i) for i, c in enumerate(chosen.tolist())]
    )
    batch.wire_length = pick(one.batch.wire_length, other.batch.wire_length)
    batch.timestamp = pick(one.batch.timestamp, other.batch.timestamp)
    batch.direction = pick(one.batch.direction, other.batch.direction)
    columns = ("length", "entropy", "tag", "truncated", "sequence", "ethertype")
    return Clones(batch, *(pick(getattr(one, name), getattr(other, name)) for name in columns))


def sent(tunnel: Encapsulation, header: int = 0, **what: Any) -> bytes:
    """Return the octets of one of a tunnel's headers, from rows with a history.

    The rows were loud before, every second row of the batch is loud again, and what lies behind the
    batch is poison that must stay.
    """
    count = 5
    tunnel.rows(clones(count, **LOUD))
    tunnel._rows[count:] = 0xA5
    every_second = np.arange(count) % 2 == 0
    rows = tunnel.rows(mix(clones(count, **what), clones(count, **LOUD), every_second))
    assert rows.shape == (count, tunnel.overhead + len(tunnel.suffix))
    assert (tunnel._rows[count:] == 0xA5).all(), "wrote behind the batch"
    assert (rows[every_second] == rows[0]).all()
    assert rows[-1].tobytes().endswith(tunnel.suffix)
    sizes = [each.template.itemsize for each in tunnel.headers]
    at = sum(sizes[:header])
    return rows[0, at : at + sizes[header]].tobytes()
