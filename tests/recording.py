"""A tunnel socket that keeps what it is given, and frames read by scalar code: for sender tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.clone.guard import LoopGuard
from tunnelbridge.clone.rules import Direction
from tunnelbridge.config.tunnel import MtuPolicy, parse_tunnel
from tunnelbridge.ledger import SenderLedger
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.linux.pushing import Sent
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.policy.plan import GroupPlan, MemberPlan, Plan, SessionPlan
from tunnelbridge.policy.policy import Policy
from tunnelbridge.policy.selection import Selection
from tunnelbridge.targets import Target
from tunnelbridge.tunnel import Frames, Tunnel

TAG_TYPES = (0x8100, 0x88A8, 0x9100, 0x9200)


class RecordingSocket:
    """Joins rows and packets to octets; ``fate`` gives the cause of an error, or nothing.

    ``packets`` are the outer packets without their IP header, those that failed included.
    """

    def __init__(self, mtu: int = 1500, fate: Callable[[bytes], str] = lambda _: "") -> None:
        self.mtu = mtu
        self.fate = fate
        self.packets: list[bytes] = []
        self.unreachable = 0
        self.is_closed = False
        self.marked = True
        self.endpoint = Endpoint("192.0.2.9", 47)

    def send(self, rows: np.ndarray, batch: Batch) -> Sent:
        assert not self.is_closed
        assert rows.dtype == np.uint8
        assert rows.flags.c_contiguous
        assert len(rows) == len(batch)
        assert (batch.length >= 0).all()
        sent = Sent(unreachable=self.unreachable)
        for number, row in enumerate(rows):
            inner = batch.octets(number)
            assert len(inner) == batch.total_length[number]
            packet = row.tobytes() + inner
            self.packets.append(packet)
            cause = self.fate(packet)
            if cause:
                sent.fail(cause, 1)
            else:
                sent.packets += 1
                sent.octets += len(inner)
        return sent

    def path_mtu(self) -> int:
        return self.mtu

    def close(self) -> None:
        self.is_closed = True


def tunnel(
    text: str,
    policy: str = "fragment",
    mtu: int = 1500,
    mac: bytes = b"",
    may_cut: bool | None = None,
) -> tuple[Tunnel, RecordingSocket]:
    """Return a tunnel as ``--to text`` configures it, and the socket that records it."""
    spec = parse_tunnel(text)
    stack = spec.encapsulation(policy == "truncate" if may_cut is None else may_cut)
    stack.suffix = mac
    sock = RecordingSocket(mtu)
    ip_header = 40 if ":" in spec.remote else 20
    return Tunnel(text, stack, lambda: sock, MtuPolicy(policy), ip_header), sock


def mac_header(frame: bytes) -> tuple[int, int, int]:
    """Return EtherType, first tag and length of the MAC header with its tags."""
    at, first = 12, 0
    ethertype = int.from_bytes(frame[12:14])
    while ethertype in TAG_TYPES and at + 6 <= len(frame):
        first = first or struct.unpack_from(">I", frame, at)[0]
        at += 4
        ethertype = int.from_bytes(frame[at : at + 2])
    return ethertype, first, at + 2


def entropy(frame: bytes) -> int:
    """Return a number that tells frames apart, as the pipeline's flow hash would."""
    return zlib.crc32(frame) & 0xFFFF


def frames(octets: list[bytes], wire_length: list[int] | None = None) -> Frames:
    """Return frames as the pipeline hands them to its tunnels."""
    batch = from_packets(octets, timestamp=1_000_000_000)
    if wire_length is not None:
        batch.wire_length = np.array(wire_length, np.int64)
    read = np.array([mac_header(frame) for frame in octets], np.int64).reshape(-1, 3)
    return Frames(
        batch,
        read[:, 0],
        read[:, 1],
        read[:, 2],
        np.array([entropy(f) for f in octets], np.int64),
        np.arange(len(octets)),
    )


class Running:
    """A pipeline with one source: what the command line makes of these tunnels."""

    def __init__(self, inner: Pipeline, selection: Selection) -> None:
        self.inner, self.selection = inner, selection

    @property
    def ledger(self) -> SenderLedger:
        return self.inner.ledger

    @property
    def is_done(self) -> bool:
        return self.inner.is_done

    def process(self, batch: Batch, _: object = None) -> None:
        self.inner.process(batch, self.selection)


def pipeline(
    tunnels: Sequence[Any],
    guard: LoopGuard,
    snaplen: int | None = None,
    program: Any = None,
    limit: int | None = None,
    *,
    expression: str = "",
    direction: Direction = "both",
    sources: Sequence[str] = (),
) -> Running:
    """Return a pipeline in which one session clones everything into all ``tunnels``."""
    members = tuple(
        MemberPlan(
            str(number), (Target(str(number), parse_tunnel("gre://192.0.2.9"), "192.0.2.9"),)
        )
        for number in range(len(tunnels))
    )
    session = SessionPlan(
        "test",
        (GroupPlan("test", members),),
        tuple(sources),
        expression=expression if program is None else "program",
        direction=direction,
        packet_length=snaplen,
    )
    policy = Policy(
        Plan((session,)), MtuPolicy.FRAGMENT, opener=lambda target, *_: tunnels[int(target.name)]
    )
    policy.guard = guard
    programs = {} if program is None else {0: program}
    return Running(Pipeline(policy, limit), Selection(policy.for_file(), programs))
