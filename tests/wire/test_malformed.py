"""Files that once broke a parser: nothing raises, whatever carries them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import outer
import pytest
from scapy.utils import RawPcapReader

from collector.decap import decapsulate
from tunnelbridge.batch import from_packets
from tunnelbridge.clone.guard import LoopGuard, Signature
from tunnelbridge.wire import gre, udp
from tunnelbridge.wire.flow import read_flows
from tunnelbridge.wire.layer import Kind

PORTS = udp.port_table(udp.PORTS)
LONGEST = 65000
ENDS = ("192.0.2.1", "198.51.100.9")


@pytest.fixture(scope="module")
def packets(captures: Path) -> list[bytes]:
    """Return the packets of all files, as far as each can be read."""
    found: list[bytes] = []
    for path in sorted((captures / "malformed").iterdir()):
        with RawPcapReader(str(path)) as reader:
            while True:
                try:
                    found.append(bytes(reader._read_packet(1 << 20)[0])[:LONGEST])
                except Exception:  # the file is malformed too: its end, or scapy's
                    break
    assert len(found) > 200
    return found


def check(frames: list[bytes], first: Kind) -> None:
    """Decapsulate a batch: every packet ends in one bucket, inside its own octets."""
    batch = from_packets(frames)
    result = decapsulate(batch, first, PORTS)
    assert (result.reason == 0).sum() == len(result.index)
    bodies, of = result.batch, result.index
    assert (bodies.start >= batch.start[of]).all()
    assert (bodies.start + bodies.length <= (batch.start + batch.length)[of]).all()


@pytest.mark.parametrize("first", sorted(set(Kind) - {Kind.NONE}))
def test_as_whatever_header(packets: list[bytes], first: Kind) -> None:
    check(packets, first)
    check(packets[:1], first)


@pytest.mark.parametrize("port", udp.PORTS)
def test_as_payload_of_every_port(packets: list[bytes], port: int) -> None:
    check(
        [outer.frame(outer.ipv4(outer.udp(p, 50000, port), 17, *ENDS)) for p in packets],
        Kind.ETHERNET,
    )


@pytest.mark.parametrize("protocol", np.flatnonzero(gre._KINDS).tolist())
@pytest.mark.parametrize("flags", ["0000", "b000"])
def test_behind_gre_of_every_protocol(packets: list[bytes], protocol: int, flags: str) -> None:
    words = {"0000": 0, "b000": 12}[flags]
    header = bytes.fromhex(flags) + protocol.to_bytes(2) + bytes(words)
    check([outer.frame(outer.ipv4(header + p, 47, *ENDS)) for p in packets], Kind.ETHERNET)


def test_the_guard_and_the_flows(packets: list[bytes]) -> None:
    signatures = [Signature(ENDS[1], kind, port, 5) for port, kind in udp.PORTS.items()]
    guard = LoopGuard([*signatures, Signature(ENDS[1], Kind.GRE, None, None)])
    frames = [packet for packet in packets if len(packet) >= 14]
    frames += [outer.frame(outer.ipv4(b"\0\0\x65\x58" + p, 47, *ENDS)) for p in frames]
    for _ in range(2):
        batch = from_packets(frames)
        flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
        reason = guard.check(batch, flows).reason
        assert reason.shape == (len(frames),)
        assert guard.breaker.armed
