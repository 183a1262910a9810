"""Take the tunnels off a batch: from what the network brought to the frames that were mirrored.

The walk goes up to four tunnels deep. Strict about the first: what is wrong there rejects the packet
with a reason. Lenient about what is inside: if a mirrored frame only looks like one more tunnel, it
is delivered as it is.

What comes out is always Ethernet, so that one tap and one file can hold all: a bare IP packet (GRE
with IP inside, Google's GENEVE, MPLS) gets a synthetic MAC header, and a VLAN tag that ERSPAN took
out of the frame is put back. Both are heads in front of octets that stay where they were received.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tunnelbridge.batch import NO_OCTETS, Batch, Column, Flags, Octets
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.clock import unwrap
from tunnelbridge.wire.layer import PAYLOADS, UNKNOWN, Codes, Kind, Layer
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason
from tunnelbridge.wire.walk import LEVELS, Step, walk

SYNTHETIC_DESTINATION: Final = bytes.fromhex("020000000002")
SYNTHETIC_SOURCE: Final = bytes.fromhex("020000000001")
"""MAC addresses of frames that had none: locally administered, never a real station's."""

_ETHERTYPES: Final = {
    Kind.IPV4: ethernet.IPV4,
    Kind.IPV6: ethernet.IPV6,
    Kind.ARP: ethernet.ARP,
}
_IP: Final = (Kind.IPV4, Kind.IPV6)
_PAYLOAD: Final = np.isin(np.arange(256), PAYLOADS)
_UNNAMED: Final = (*_IP, Kind.ETHERNET, Kind.UDP, Kind.NSH, Kind.PPP)
"""Headers that do not name a tunnel: carriers, and what rides inside one."""
_MACS: Final = np.dtype("V12")
_SYNTHETIC: Final = np.dtype([("macs", "V12"), ("type", ">u2")])
_RETAGGED: Final = np.dtype([("macs", "V12"), ("tag", ">u4")])


@dataclass(slots=True)
class Decapsulated:
    """The mirrored frames of a batch of n packets: m of them, columns of shape (m,)."""

    batch: Batch
    index: Column
    """Which received packet each frame was in."""
    encapsulation: Codes
    """The outermost tunnel, a :class:`Kind`."""
    identifier: Column
    sequence: Column
    truncated: Flags
    """The frame was cut before it reached us: the sender says so, or its own IP length does."""
    reason: Codes
    """Shape (n,): why a received packet gave no frame; 0 for those that did."""
    outermost: Codes
    """Shape (n,): the outermost tunnel of every received packet, NONE where none was found."""

    def select(self, index: Column) -> Decapsulated:
        """Return the frames at ``index``; ``reason`` and ``outermost`` stay those of all packets."""
        return Decapsulated(
            self.batch.select(index),
            self.index[index],
            self.encapsulation[index],
            self.identifier[index],
            self.sequence[index],
            self.truncated[index],
            self.reason,
            self.outermost,
        )


@dataclass(slots=True)
class _State:
    """What the walk has found so far, columns of shape (n,)."""

    count: int
    start: Column = field(init=False)
    end: Column = field(init=False)
    kind: Codes = field(init=False)
    """Kind of the innermost payload; NONE while there is none."""
    reason: Codes = field(init=False)
    encapsulation: Codes = field(init=False)
    identifier: Column = field(init=False)
    sequence: Column = field(init=False)
    direction: Column = field(init=False)
    tag: Column = field(init=False)
    original_length: Column = field(init=False)
    told_truncated: Flags = field(init=False)
    claimed_end: Column = field(init=False)
    """By the innermost IP header inside a tunnel; what that one carries ends there at the latest."""

    clock: Column | None = None
    """The source's time, of packets whose tunnel tells one; None while none did."""
    clock_period: Column | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end", "tag", "claimed_end"):
            setattr(self, name, np.zeros(self.count, np.int64))
        for name in ("identifier", "sequence", "direction", "original_length"):
            setattr(self, name, np.full(self.count, UNKNOWN, np.int64))
        for name in ("kind", "reason", "encapsulation"):
            setattr(self, name, np.zeros(self.count, np.uint8))
        self.told_truncated = np.zeros(self.count, np.bool_)


def decapsulate(
    batch: Batch, first: int, ports: Codes, levels: int = LEVELS, source_time: bool = False
) -> Decapsulated:
    """Decapsulate received packets whose first header is of kind ``first``.

    ``ports`` (65536,) is the table of UDP ports that tunnels listen on
    (:func:`tunnelbridge.wire.udp.port_table`). With ``source_time`` the frames have the time that
    their outermost tunnel tells, where it tells one; else that of the received packet.
    """
    memory = batch.memory
    state = _State(len(batch))
    for step in walk(memory, batch.start, batch.start + batch.length, first, ports, levels):
        _keep(memory, state, step)
    none = state.kind == Kind.NONE
    state.reason[none & (state.reason == 0)] = Reason.NOT_A_TUNNEL
    state.reason[~none] = 0
    index = np.flatnonzero(~none)
    frames = _frames(batch, state, index)
    if source_time and state.clock is not None and state.clock_period is not None:
        frames.timestamp = unwrap(state.clock[index], state.clock_period[index], frames.timestamp)
    return Decapsulated(
        batch=frames,
        index=index,
        encapsulation=state.encapsulation[index],
        identifier=state.identifier[index],
        sequence=state.sequence[index],
        truncated=_is_truncated(state, index),
        reason=state.reason,
        outermost=state.encapsulation,
    )


def _keep(memory: Octets, state: _State, step: Step) -> None:
    """Take from one decoded header what belongs to the packet's outcome."""
    index, layer = step.index, step.layer
    outermost = state.kind[index] == Kind.NONE
    if outermost.any():
        _keep_stream(state, step, outermost)
    if layer.claimed_end is not None:
        state.claimed_end[index] = np.where(outermost, 0, layer.claimed_end)
    if step.kind != Kind.ETHERNET:
        _keep_payload(memory, state, step)


def _keep_stream(state: _State, step: Step, outermost: Flags) -> None:
    """Note the first tunnel's name, identifier and sequence, or why it was refused."""
    index, layer = step.index, step.layer
    state.reason[index] = np.where(outermost, layer.reason, state.reason[index])
    if step.kind not in _UNNAMED:
        name = step.kind if layer.encapsulation is None else layer.encapsulation
        state.encapsulation[index] = np.where(outermost, name, state.encapsulation[index])
    elif step.kind in _IP:  # IP whose payload is IP: the tunnel is IP itself
        inside = outermost & _PAYLOAD[layer.kind] & (layer.reason == 0)
        if inside.any():
            kept = state.encapsulation[index]
            state.encapsulation[index] = np.where(inside, Kind.IPIP, kept)
    for told, column in (
        (layer.identifier, state.identifier),
        (layer.sequence, state.sequence),
        (layer.direction, state.direction),
    ):
        if told is not None:
            column[index] = np.where(outermost & (told != UNKNOWN), told, column[index])
    if layer.clock is not None and layer.clock_period is not None:
        _keep_clock(state, index, outermost, layer.clock, layer.clock_period)


def _keep_clock(
    state: _State, index: Column | slice, outermost: Flags, clock: Column, period: Column
) -> None:
    if state.clock is None or state.clock_period is None:
        state.clock = np.full(state.count, UNKNOWN, np.int64)
        state.clock_period = np.zeros(state.count, np.int64)
    kept = outermost & (clock != UNKNOWN)
    state.clock[index] = np.where(kept, clock, state.clock[index])
    state.clock_period[index] = np.where(kept, period, state.clock_period[index])


def _keep_payload(memory: Octets, state: _State, step: Step) -> None:
    """Where a tunnel ends, its payload becomes the innermost frame or packet found."""
    index, layer = step.index, step.layer
    begins = (layer.reason == 0) & _PAYLOAD[layer.kind]
    if not begins.any():
        return
    kind, begins, reason = _check_payload(memory, layer, begins)
    if reason.any():
        fails = (reason != 0) & (state.kind[index] == Kind.NONE)
        state.reason[index] = np.where(fails, reason, state.reason[index])
    if begins.all():
        where: Column | slice = index
        chosen: Flags | slice = slice(None)
    else:
        where = np.flatnonzero(begins) if isinstance(index, slice) else index[begins]
        chosen = begins
    state.start[where] = layer.payload[chosen]
    state.end[where] = layer.end[chosen]
    state.kind[where] = kind[chosen]
    state.tag[where] = 0 if layer.tag is None else layer.tag[chosen]
    state.original_length[where] = (
        UNKNOWN if layer.original_length is None else layer.original_length[chosen]
    )
    state.told_truncated[where] = False if layer.truncated is None else layer.truncated[chosen]


def _check_payload(memory: Octets, layer: Layer, begins: Flags) -> tuple[Codes, Flags, Codes]:
    """Return kind, which payloads can be delivered, and the reason for those that cannot."""
    reason = np.zeros(len(begins), np.uint8)
    present = layer.end - layer.payload
    is_frame = layer.kind == Kind.ETHERNET
    short = begins & (present < np.where(is_frame, ethernet.HEADER.itemsize, 1))
    kind = layer.kind
    if not is_frame.all():  # the version nibble decides what bare IP is, whatever was announced
        nibble = memory[np.minimum(layer.payload, memory.size - 1)] >> 4
        bare = begins & ((kind == Kind.IPV4) | (kind == Kind.IPV6))
        kind = np.where(bare & (nibble == 4), Kind.IPV4, kind)
        kind = np.where(bare & (nibble == 6), Kind.IPV6, kind).astype(np.uint8)
        reason[bare & (nibble != 4) & (nibble != 6)] = Reason.IP_VERSION
    reason[short] = Reason.FRAME_SHORT
    return kind, begins & (reason == 0), reason


def _is_truncated(state: _State, index: Column) -> Flags:
    present = state.end[index] - state.start[index]
    truncated: Flags = state.told_truncated[index] | (state.claimed_end[index] > state.end[index])
    truncated |= state.original_length[index] > present
    return truncated


def _frames(batch: Batch, state: _State, index: Column) -> Batch:
    """Build the frames: bodies in the received memory, heads where something must be put in front."""
    start, end = state.start[index], state.end[index]
    present = end - start
    original = np.maximum(state.original_length[index], state.claimed_end[index] - start)
    direction = state.direction[index]
    frames = Batch(
        memory=batch.memory,
        start=start,
        length=present,
        wire_length=np.maximum(present, original),
        timestamp=batch.timestamp[index],
        direction=np.where(direction == UNKNOWN, 0, direction).astype(np.uint8),
    )
    kind, tag = state.kind[index], state.tag[index]
    if (kind != Kind.ETHERNET).any() or tag.any():
        _add_heads(frames, kind, tag)
    return frames


def _add_heads(frames: Batch, kind: Codes, tag: Column) -> None:
    """Put synthetic MAC headers and removed tags in front, in place."""
    bare = np.flatnonzero(kind != Kind.ETHERNET)
    tagged = np.flatnonzero((kind == Kind.ETHERNET) & (tag != 0))
    synthetic = np.zeros(len(bare), _SYNTHETIC)
    synthetic["macs"] = np.void(SYNTHETIC_DESTINATION + SYNTHETIC_SOURCE)
    for ip, ethertype in _ETHERTYPES.items():
        synthetic["type"][kind[bare] == ip] = ethertype
    retagged = np.zeros(len(tagged), _RETAGGED)
    retagged["macs"] = load(frames.memory, frames.start[tagged], _MACS)
    retagged["tag"] = tag[tagged]
    frames.head = np.concatenate([NO_OCTETS, synthetic.view(np.uint8), retagged.view(np.uint8)])
    frames.head_start = np.zeros(len(kind), np.int64)
    frames.head_length = np.zeros(len(kind), np.int64)
    frames.head_start[bare] = np.arange(len(bare)) * _SYNTHETIC.itemsize
    frames.head_length[bare] = _SYNTHETIC.itemsize
    after = len(bare) * _SYNTHETIC.itemsize
    frames.head_start[tagged] = after + np.arange(len(tagged)) * _RETAGGED.itemsize
    frames.head_length[tagged] = _RETAGGED.itemsize
    frames.start = frames.start.copy()
    frames.start[tagged] += _MACS.itemsize
    frames.length[tagged] -= _MACS.itemsize
    frames.wire_length[bare] += _SYNTHETIC.itemsize
    frames.wire_length[tagged] += _RETAGGED.itemsize - _MACS.itemsize
