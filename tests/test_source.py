"""A mirrored interface: its packets, the kernel's drops, and how it comes back."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import outer
import pytest
import recording

import lab
from tunnelbridge import source
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.clone.guard import LoopGuard
from tunnelbridge.errors import UserError
from tunnelbridge.linux.ring import Ring
from tunnelbridge.source import Direction, InterfaceSource

pytestmark = pytest.mark.usefixtures("root")


def numbered(number: int) -> bytes:
    packet = outer.ipv4(outer.udp(number.to_bytes(8), 1, 2), 17, "10.0.0.1", "10.0.0.2")
    return outer.frame(packet)


@dataclass
class Mirrored:
    """An interface in a namespace, what feeds it, and what was cloned of it."""

    ns: str
    near: str
    far: str
    source: InterfaceSource
    pipeline: Any
    clones: recording.RecordingSocket

    def inside(self, function: object, *args: object) -> object:
        return lab.in_namespace(self.ns, function, *args)

    def send(self, *octets: bytes, end: str = "") -> None:
        def work() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind((end or self.far, 0))
                for each in octets:
                    sock.send(each)

        self.inside(work)

    def captured(self, packets: int) -> None:
        """Wait until the ring has seen this many packets."""
        ring = self.source.ring
        assert ring is not None
        lab.until(lambda: ring.statistics()[0] >= packets, what=f"{packets} packets in the ring")

    def read(self, clones: int) -> None:
        """Read until this many clones were made."""

        def enough() -> bool:
            self.source.read()
            return len(self.clones.packets) >= clones

        lab.until(enough, what=f"{clones} clones")

    @property
    def cloned(self) -> list[bytes]:
        return [packet[4:] for packet in self.clones.packets]


@contextlib.contextmanager
def mirrored(expression: str = "", direction: Direction = "both") -> Iterator[Mirrored]:
    tunnel, clones = recording.tunnel("gre://192.0.2.9")
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        running = recording.pipeline(
            [tunnel],
            LoopGuard([]),
            expression=expression,
            direction=direction,
            sources=(near, "lo"),
        )
        each = InterfaceSource(near, None, running.inner)
        try:
            yield Mirrored(ns, near, far, each, running.inner, clones)
        finally:
            each.detach()


@pytest.fixture
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rings of four blocks, which overflow soon."""

    def small(interface: str, **options: Any) -> Ring:
        return Ring(interface, **options | {"blocks": 4, "block_size": 4096})

    monkeypatch.setattr(source, "Ring", small)


@pytest.mark.parametrize(
    ("expression", "direction", "expected"),
    [
        ("", "both", [1, 2, 3]),
        ("", "in", [1, 3]),
        ("", "out", [2]),
        ("udp dst port 2 and not ether[49] = 1", "both", [2, 3]),
    ],
)
def test_filter_and_direction(expression: str, direction: Direction, expected: list[int]) -> None:
    with mirrored(expression, direction) as here:
        here.inside(here.source.attach)
        here.send(numbered(1))
        here.send(numbered(2), end=here.near)
        here.send(numbered(3))
        here.read(len(expected))

        assert here.cloned == [numbered(number) for number in expected]
        assert here.pipeline.ledger.balances()


@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_on_loopback_each_packet_is_seen_once(direction: Direction) -> None:
    def talk() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
        ):
            far.bind(("127.0.0.1", 0))
            for number in range(3):
                near.sendto(bytes([number]), far.getsockname())
                far.recv(1)

    with mirrored(direction=direction) as here:
        here.source.name = "lo"
        ring = here.inside(here.source.attach)
        here.inside(talk)
        here.captured(3)
        lab.until(lambda: (here.source.read(), not here.source.pending())[1], what="all read")

        assert ring.statistics() == (3, 0)
        assert [clone[-1] for clone in here.cloned] == [0, 1, 2]


def test_an_interface_without_ethernet() -> None:
    with mirrored() as here:
        here.source.name = lab.unique("tun")
        lab.run("ip", "-n", here.ns, "tuntap", "add", "dev", here.source.name, "mode", "tun")
        message = rf"^interface {here.source.name} carries no Ethernet frames \(ARPHRD 65534\): "
        with pytest.raises(UserError, match=message) as told:
            here.inside(here.source.attach)
        assert "\n" not in str(told.value)
        assert here.source.ring is None
        assert not here.inside(here.source.reattach)


def test_a_block_is_given_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with mirrored() as here:
        here.inside(here.source.attach)
        here.send(numbered(1))
        here.captured(1)
        with monkeypatch.context() as patch:
            patch.setattr(here.pipeline, "process", fail)
            with pytest.raises(ZeroDivisionError):
                lab.until(lambda: not here.source.read(), what="the failure")
        here.send(numbered(2))
        here.read(1)  # would raise if the first block were still held

        assert here.source.ring is not None
        assert here.source.ring._held == 0
        assert here.cloned == [numbered(2)]


@pytest.mark.parametrize(("seconds", "batches"), [(0.0, 4), (0.04, 3), (1.0, 1)])
def test_a_slow_pipeline_does_not_keep_signals_waiting(
    monkeypatch: pytest.MonkeyPatch, seconds: float, batches: int
) -> None:
    now, read = [1000.0], []

    def process(batch: Batch, selection: object) -> None:
        read.append(len(batch))
        now[0] += seconds

    monkeypatch.setattr(source, "monotonic", lambda: now[0])
    each = InterfaceSource("any", None, SimpleNamespace(process=process))
    each.ring = SimpleNamespace(read=lambda _: from_packets([numbered(1)]), release=lambda: None)

    assert each.read()
    assert len(read) == batches


def test_no_such_interface() -> None:
    with mirrored() as here:
        here.source.name = "nosuch0"
        with pytest.raises(UserError, match="nosuch0"):
            here.inside(here.source.attach)
        assert here.source.ring is None
        here.source.read()  # nothing to read is no error
        assert not here.source.pending()


def test_the_kernels_drops_are_counted_once(small_ring: None) -> None:
    with mirrored() as here:
        here.inside(here.source.attach)
        ledger = here.pipeline.ledger
        here.send(*[numbered(number) for number in range(1000)])
        here.captured(1000)
        here.source.count_drops()
        here.source.count_drops()
        dropped = ledger.kernel_dropped
        assert 0 < dropped < 1000
        assert ledger.received == dropped

        lab.until(lambda: (here.source.read(), not here.source.pending())[1], what="all read")

        assert ledger.kernel_dropped == dropped
        assert ledger.cloned == len(here.cloned) == 1000 - dropped
        assert here.cloned == [numbered(number) for number in range(1000 - dropped)]
        assert ledger.received == 1000
        assert ledger.balances()


def test_what_was_not_read_counts_as_dropped() -> None:
    with mirrored() as here:
        here.inside(here.source.attach)
        here.send(numbered(1), numbered(2))
        here.read(2)
        here.send(*[numbered(number) for number in range(7)])
        here.captured(9)
        assert here.source.pending()

        here.source.detach()
        here.source.detach()

        ledger = here.pipeline.ledger
        assert (ledger.received, ledger.cloned, ledger.kernel_dropped) == (9, 2, 7)
        assert ledger.balances()


def test_a_ring_that_accepts_nothing_more_is_drained() -> None:
    with mirrored() as here:
        ring = here.inside(here.source.attach)
        here.send(numbered(1))
        here.captured(1)
        ring.stop()
        here.send(numbered(2))
        lab.until(lambda: (here.source.read(), not here.source.pending())[1], what="all read")

        assert here.cloned == [numbered(1)]
        assert here.pipeline.ledger.received == 1


def test_an_interface_that_vanishes_and_comes_back() -> None:
    with mirrored() as here:
        assert here.inside(here.source.is_stale)  # not attached yet
        here.inside(here.source.attach)
        assert not here.inside(here.source.is_stale)
        here.send(numbered(1))
        here.read(1)
        here.send(numbered(7), numbered(8))
        here.captured(3)

        lab.run("ip", "-n", here.ns, "link", "delete", here.near)
        assert here.inside(here.source.is_stale)
        here.source.detach()  # what was not read is lost
        assert not here.inside(here.source.is_stale)  # gone, and known to be
        assert not here.inside(here.source.reattach)
        assert here.source.ring is None

        lab.run("ip", "-n", here.ns, "link", "add", here.near, "type", "veth",
                "peer", "name", here.far)  # fmt: skip
        for end in (here.near, here.far):
            lab.run("ip", "-n", here.ns, "link", "set", end, "up")
        lab.until(lambda: lab.carrier(here.ns, here.near), what="carrier")
        assert here.inside(here.source.is_stale)
        assert here.inside(here.source.reattach)
        assert not here.inside(here.source.is_stale)
        here.send(numbered(2))
        here.captured(1)
        assert here.source.pending()
        here.read(2)
        here.source.count_drops()

        assert here.cloned == [numbered(1), numbered(2)]
        assert here.pipeline.ledger.kernel_dropped == 2
        assert here.pipeline.ledger.balances()


def test_another_interface_under_the_same_name_is_noticed() -> None:
    with mirrored() as here:
        here.inside(here.source.attach)

        lab.run("ip", "-n", here.ns, "link", "delete", here.near)
        lab.run("ip", "-n", here.ns, "link", "add", here.near, "type", "veth")

        assert here.inside(here.source.is_stale)


def test_an_interface_that_is_down_for_a_while() -> None:
    with mirrored() as here:
        ring = here.inside(here.source.attach)
        lab.run("ip", "-n", here.ns, "link", "set", here.near, "down")
        here.source.read()
        assert ring.clear_error() == 0  # read() has seen and cleared it
        lab.run("ip", "-n", here.ns, "link", "set", here.near, "up")
        lab.until(lambda: lab.carrier(here.ns, here.near), what="carrier")
        here.send(numbered(1))
        here.read(1)

        assert here.cloned == [numbered(1)]
