"""Sessions on real interfaces: filters and columns together, while the policy and interfaces change."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import outer
import pytest
from rig import Rig

import lab
from tunnelbridge.errors import UserError
from tunnelbridge.interfaces import Interfaces
from tunnelbridge.linux import tpacket
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.policy import programs
from tunnelbridge.policy.clients import Clients
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


# --- interfaces and namespaces that go at the wrong moment ---


@contextlib.contextmanager
def following(rig: Rig) -> Iterator[Interfaces]:
    """Follow interfaces as a sender does; what is attached is read by hand."""
    each = Interfaces(rig.pipeline, lambda _: None, lambda _: None)
    loop = asyncio.new_event_loop()
    try:
        each.start(loop)
        yield each
    finally:
        each.close()
        loop.close()


def test_an_interface_that_vanishes_while_it_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(sock: socket.socket, size: int, blocks: int) -> tuple[int, bool]:
        done = allocate(sock, size, blocks)
        lab.run("ip", "-n", here.ns, "link", "delete", here.near)
        return done

    allocate = tpacket.allocate
    with live(SESSION) as here:
        here.source.detach()
        monkeypatch.setattr(tpacket, "allocate", vanish)
        with pytest.raises(UserError, match=here.near):
            here.source.attach()


def test_a_namespace_that_is_just_made_or_taken_away() -> None:
    name = lab.unique("tb")
    path = lab.NAMESPACES / name
    path.touch()  # ip netns add makes the file first
    try:
        with pytest.raises(UserError, match=f"cannot enter network namespace {name}"):
            in_thread(lambda: None, name)
        rig = Rig(SESSION.replace("SOURCE", f"{name}:eth*"))
        with following(rig) as interfaces:
            interfaces.look()
            assert interfaces.sources == []
    finally:
        path.unlink()


def test_what_is_told_after_the_end_attaches_nothing() -> None:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, _):
        rig = Rig(SESSION.replace("SOURCE", f"{ns}:{near}"))
        with following(rig) as interfaces:
            (each,) = interfaces.sources
            assert each.ring is not None
        interfaces._on_link(ns, near)
        interfaces.follow_policy()
        assert each.ring is None


def test_a_renamed_interface_is_never_attached_twice() -> None:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        rig = Rig(SESSION.replace("SOURCE", f"{ns}:v*"))
        attached: list[tuple[str, str]] = []
        interfaces = Interfaces(
            rig.pipeline,
            lambda each: attached.append(("+", each.name)),
            lambda each: attached.append(("-", each.name)),
        )
        loop = asyncio.new_event_loop()  # it does not run: events are lost
        try:
            interfaces.start(loop)
            attached.clear()
            new = lab.unique("vn")
            for change in (["down"], ["name", new]):
                lab.run("ip", "-n", ns, "link", "set", near, *change)
            interfaces.look()
            assert attached == [("-", near), ("+", new)]
            assert sorted(each.name for each in interfaces.sources) == sorted([far, new])
        finally:
            interfaces.close()
            loop.close()


def test_many_interfaces_share_the_memory() -> None:
    with lab.namespace() as ns:
        for number in range(12):
            ends = f"many{number}", "type", "veth", "peer", "name", f"many{number}b"
            lab.run("ip", "-n", ns, "link", "add", *ends)
        rig = Rig(SESSION.replace("SOURCE", f"{ns}:many*"))
        with following(rig) as interfaces:
            rings = [each.ring for each in interfaces.sources]
            octets = [ring.blocks * ring.block_size for ring in rings if ring is not None]
    assert len(octets) == 24
    assert max(octets) == 64 << 20
    assert min(octets) >= 4 << 20
    assert sum(octets) <= 768 << 20


@contextlib.contextmanager
def namespace_called(name: str) -> Iterator[None]:
    lab.run("ip", "netns", "add", name)
    try:
        yield
    finally:
        lab.run("ip", "netns", "delete", name)


def test_many_interfaces_at_once_do_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.namespace() as ns:
        rig = Rig(SESSION.replace("SOURCE", f"{ns}:many*"))
        with following(rig) as interfaces:
            for number in range(6):
                ends = f"many{number}", "type", "veth", "peer", "name", f"many{number}b"
                lab.run("ip", "-n", ns, "link", "add", *ends)
            monkeypatch.setattr("tunnelbridge.interfaces.LONGEST_READ", 0.0)
            counts = []
            for _ in range(13):
                interfaces.look()
                interfaces.look()  # not even then: the loop has to turn first
                counts.append(len(interfaces.sources))
                interfaces._is_catching_up = False  # as when the loop has turned
            assert counts == [*range(1, 13), 12]


NAT = """
[pools.p]
preserve_client_ip = true
members = [{ ip = "192.0.2.1", via = "gre://192.0.2.1" }]
[sessions.s]
sources = ["SOURCE"]
target = "p"
"""


def test_clients_of_a_namespace_that_comes_and_goes() -> None:
    lab.need("conntrack")
    name = lab.unique("tb")
    connection = (
        "conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport 1 --dport 2 --timeout 60"
        " --src-nat 192.0.2.9"
    )
    before = lab.descriptors()
    clients = Clients()
    rig = Rig("")
    rig.policy.clients = clients
    rig.apply(NAT.replace("SOURCE", f"{name}:eth*"))  # a namespace in a glob may be missing
    nat = rig.policy.sessions[0].groups[0].nat
    assert nat is not None
    try:
        for _ in range(3):
            with namespace_called(name):
                lab.run(*connection.split(), ns=name)
                clients.look()
                assert len(nat) == 1
                lab.run("conntrack", "-F", ns=name, check=False)
            clients.look()
            assert lab.left_open(before) == [], "nothing may keep the namespace alive"
        with namespace_called(name):
            clients.look()
            assert lab.left_open(before) != []
            rig.apply(NAT.replace("true", "false").replace("SOURCE", f"{name}:eth*"))
            assert lab.left_open(before) == [], "nobody asks for clients any more"
    finally:
        clients.close()
