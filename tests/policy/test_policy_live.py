"""Sessions on real interfaces: filters and columns together, while the policy and interfaces change."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import outer
import pytest
from rig import Rig

import lab
from tunnelbridge.policy import programs
from tunnelbridge.source import SETTLING, InterfaceSource

pytestmark = pytest.mark.usefixtures("root")


def udp(port: int, number: int = 0) -> bytes:
    payload = outer.udp(number.to_bytes(8), 1000, port)
    return outer.frame(outer.ipv4(payload, 17, "10.0.0.1", "10.0.0.2"))


class Live:
    """A policy whose tunnels record, on one end of a cable in a namespace of its own."""

    def __init__(self, ns: str, near: str, far: str, config: str) -> None:
        self.ns, self.near, self.far = ns, near, far
        self.rig = Rig(self.text(config))
        self.source = InterfaceSource(near, ns, self.rig.pipeline)

    def text(self, config: str) -> str:
        return config.replace("SOURCE", f"{self.ns}:{self.near}")

    def apply(self, config: str) -> None:
        self.rig.apply(self.text(config))
        self.source.follow_policy()

    def send(self, *frames: bytes, end: str = "") -> None:
        """Send frames, which are in the ring behind this if its filter takes them."""
        def work() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind((end or self.far, 0))
                for each in frames:
                    sock.send(each)

        lab.in_namespace(self.ns, work)

    def read(self) -> None:
        """Read all that is in the ring."""
        lab.until(lambda: (self.source.read(), not self.source.pending())[1], what="all read")
        assert self.rig.policy.ledger.balances(), self.rig.policy.ledger.as_dict()

    def got(self, name: str = "") -> list[bytes]:
        """Return what the tunnel of that name got, GRE's four octets away."""
        (found,) = [each for each in self.rig.sockets if name in each]
        return [packet[4:] for packet in self.rig.sockets[found].packets]


@contextlib.contextmanager
def live(config: str) -> Iterator[Live]:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        each = Live(ns, near, far, config)
        each.source.attach()
        try:
            yield each
        finally:
            each.source.detach()


SESSION = """
[sessions.s]
sources = ["SOURCE"]
target = "gre://192.0.2.1"
expression = "udp port 9"
"""


@pytest.mark.parametrize("wanted", ["out", "both"])
def test_a_direction_that_a_reload_adds_is_seen(wanted: str) -> None:
    with live(SESSION + 'direction = "in"\n') as here:
        here.send(udp(9, 1))
        here.send(udp(9, 2), end=here.near)
        here.read()
        assert here.got() == [udp(9, 1)]
        here.apply(SESSION + f'direction = "{wanted}"\n')
        here.send(udp(9, 3))
        here.send(udp(9, 4), end=here.near)
        here.read()
        assert here.got() == [udp(9, 1), *([udp(9, 3)] if wanted == "both" else []), udp(9, 4)]
        here.apply(SESSION + 'direction = "in"\n')
        here.send(udp(9, 5), end=here.near)
        here.send(udp(9, 6))
        here.read()
        assert here.got()[-2:] == [udp(9, 4), udp(9, 6)]


def test_a_session_that_is_enabled_brings_its_direction() -> None:
    config = SESSION + 'direction = "in"\n'
    config += config.replace("sessions.s", "sessions.t").replace('"in"', '"out"\nenabled = false')
    with live(config) as here:
        here.rig.policy.enable("t", True)
        here.source.follow_policy()
        here.send(udp(9, 1), end=here.near)
        here.read()
        assert here.got() == [udp(9, 1)]


def test_an_expression_too_long_for_the_kernel_is_decided_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "kernel_takes", lambda program: len(program) < 10)
    with live(SESSION) as here:
        here.send(udp(9), udp(10))
        here.read()
        assert here.got() == [udp(9)]
        assert here.rig.policy.ledger.not_matched == 1


def test_packets_that_come_while_a_filter_is_compiled_are_decided_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with live(SESSION) as here:

        def slowly(*arguments: Any) -> programs.KernelProgram:
            program = kernel_program(*arguments)
            end = time.time_ns() + 2 * SETTLING
            lab.until(lambda: time.time_ns() > end)
            here.send(udp(9))  # the former filter takes it still
            return program

        kernel_program = programs.kernel_program
        monkeypatch.setattr(programs, "kernel_program", slowly)
        here.apply(SESSION.replace("port 9", "port 10"))
        here.send(udp(9), udp(10))
        here.read()
        assert here.got() == [udp(10)]
