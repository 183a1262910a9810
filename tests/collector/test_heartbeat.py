"""Heartbeats are answered, nothing else is; plain sockets of other namespaces ask."""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import lab
from collector import cli, heartbeat
from collector import collector as module
from collector.allow import AllowList
from collector.collector import Collector, ListenOptions
from collector.heartbeat import Heartbeat, parse_where
from collector.listener import Wanted
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import libc

PORT = 8998
ASK = b"tbhb\x01\x01\x00\x00" + b"12345678"
ANSWER = b"tbhb\x01\x02\x00\x00" + b"12345678"
Net = tuple[str, str, str, str]
Run = Callable[..., tuple[int, str, str]]
needs_root = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module")
def net(root: None) -> Iterator[Net]:
    """A collector's namespace with two addresses per family, and a sender's."""
    with (
        lab.namespace(ipv6=True) as a,
        lab.namespace(ipv6=True) as b,
        lab.veth(a, b, "10.99.0.1/24", "10.99.0.2/24") as (end_a, end_b),
    ):
        for ns, end, address in (
            (a, end_a, "10.99.0.3/24"), (a, end_a, "fd99::1/64"), (a, end_a, "fd99::3/64"),
            (b, end_b, "10.99.0.4/24"), (b, end_b, "fd99::2/64"),
        ):  # fmt: skip
            nodad = ("nodad",) if ":" in address else ()
            lab.run("ip", "-n", ns, "address", "add", address, "dev", end, *nodad)
        yield a, b, end_a, end_b


class Beating:
    """A heartbeat in a namespace, driven by hand."""

    def __init__(self, ns: str, where: str = str(PORT), allow: tuple[str, ...] = ()) -> None:
        self.now = 0.0
        self.heart = lab.in_namespace(ns, Heartbeat, where, AllowList(allow), lambda: self.now)

    def take(self, count: int) -> None:
        """Take ``count`` datagrams, which may be on their way yet, and no more."""
        aim = self.taken() + count
        lab.until(lambda: self._look() >= aim, what=f"{count} datagrams")
        assert self.taken() == aim

    def taken(self) -> int:
        return self.heart.answered + self.heart.ignored

    def _look(self) -> int:
        for sock in self.heart.sockets:
            self.heart.on_readable(sock)
        return self.taken()

    def __enter__(self) -> Beating:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self.heart.close()


def asker(ns: str, stack: ExitStack, source: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    sock = lab.in_namespace(ns, socket.socket, family, socket.SOCK_DGRAM)
    stack.enter_context(sock)
    sock.bind((source, 0))
    sock.setblocking(False)
    return sock


def received(sock: socket.socket, count: int = 0) -> list[tuple[bytes, str]]:
    """Return what came; waits for ``count`` datagrams."""
    found: list[tuple[bytes, str]] = []
    while True:
        if len(found) < count:
            assert select.select([sock], [], [], 5)[0]
        try:
            octets, source = sock.recvfrom(2048)
        except BlockingIOError:
            return found
        found.append((octets, source[0]))


@needs_root
@pytest.mark.parametrize(
    ("source", "asked"),
    [("10.99.0.2", "10.99.0.1"), ("10.99.0.2", "10.99.0.3"), ("fd99::2", "fd99::1"),
     ("fd99::2", "fd99::3")],
)  # fmt: skip
def test_answers_come_from_the_address_that_was_asked(net: Net, source: str, asked: str) -> None:
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(net[0]))
        sock = asker(net[1], stack, source)
        sock.sendto(ASK, (asked, PORT))
        sock.sendto(ASK + b"padding", (asked, PORT))
        beating.take(2)
        assert received(sock, 2) == [(ANSWER, asked), (ANSWER + b"padding", asked)]
        assert (beating.heart.answered, beating.heart.ignored) == (2, 0)


@needs_root
def test_a_link_local_address_answers(net: Net) -> None:
    a, b, end_a, end_b = net
    told = lab.run("ip", "-n", a, "-o", "-6", "address", "show", "dev", end_a, "scope", "link")
    asked = told.split()[3].partition("/")[0]
    scope = int(lab.run("cat", f"/sys/class/net/{end_b}/ifindex", ns=b))
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(a))
        sock = asker(b, stack, "::")
        sock.sendto(ASK, (asked, PORT, 0, scope))
        beating.take(1)
        ((octets, source),) = received(sock, 1)
        assert (octets, source.partition("%")[0]) == (ANSWER, asked)


@needs_root
@pytest.mark.parametrize(
    "octets",
    [b"", b"tbhb", ASK[:15], ASK + bytes(49), ASK + bytes(1400), ANSWER, b"TBHB" + ASK[4:],
     ASK[:4] + b"\x02" + ASK[5:], ASK[:5] + b"\x00" + ASK[6:], ASK[:6] + b"\x01\x00" + ASK[8:],
     bytes(16), b"\xff" * 64],
)  # fmt: skip
def test_nothing_else_is_answered(net: Net, octets: bytes) -> None:
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(net[0]))
        sock = asker(net[1], stack, "10.99.0.2")
        sock.sendto(octets, ("10.99.0.1", PORT))
        sock.sendto(ASK, ("10.99.0.1", PORT))
        beating.take(2)
        assert received(sock, 1) == [(ANSWER, "10.99.0.1")]
        assert (beating.heart.answered, beating.heart.ignored) == (1, 1)


@needs_root
@pytest.mark.parametrize("length", [16, 17, 63, 64])
def test_an_answer_is_as_long_as_its_question(net: Net, length: int) -> None:
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(net[0]))
        sock = asker(net[1], stack, "10.99.0.2")
        sock.sendto(ASK + b"p" * (length - 16), ("10.99.0.1", PORT))
        beating.take(1)
        assert [len(octets) for octets, _ in received(sock, 1)] == [length]


@needs_root
def test_broadcast_and_multicast_are_not_answered(net: Net) -> None:
    a, b, _, end_b = net
    scope = int(lab.run("cat", f"/sys/class/net/{end_b}/ifindex", ns=b))
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(a))
        sock = asker(b, stack, "10.99.0.2")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(ASK, ("10.99.0.255", PORT))
        six = asker(b, stack, "::")
        six.sendto(ASK, ("ff02::1", PORT, 0, scope))
        beating.take(2)
        assert (beating.heart.answered, beating.heart.ignored) == (0, 2)
        assert received(sock) == received(six) == []


@needs_root
def test_only_allowed_sources_are_answered(net: Net) -> None:
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(net[0], allow=("10.99.0.4/32", "fd99::/64")))
        socks = [asker(net[1], stack, ip) for ip in ("10.99.0.2", "10.99.0.4", "fd99::2")]
        for sock in socks:
            sock.sendto(ASK, ("fd99::1" if sock.family == socket.AF_INET6 else "10.99.0.1", PORT))
        beating.take(3)
        assert (beating.heart.answered, beating.heart.ignored) == (2, 1)
        assert [len(received(sock, count)) for sock, count in zip(socks, (0, 1, 1), strict=True)] == [
            0, 1, 1
        ]  # fmt: skip


@needs_root
def test_the_rate_is_bounded_and_comes_back_with_time(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "RATE", 10)
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(net[0]))
        sock = asker(net[1], stack, "10.99.0.2")

        def asked(count: int) -> int:
            for _ in range(count):
                sock.sendto(ASK, ("10.99.0.1", PORT))
            before = beating.heart.answered
            beating.take(count)
            return beating.heart.answered - before

        assert asked(20) == 10
        assert asked(1) == 0
        beating.now += 0.25
        assert asked(5) == 2
        beating.now += 1000
        assert asked(20) == 10


@needs_root
def test_a_flood_is_taken_in_parts(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "AT_ONCE", 2)
    with ExitStack() as stack:
        beating = stack.enter_context(Beating(net[0]))
        sock = asker(net[1], stack, "10.99.0.2")
        for _ in range(7):
            sock.sendto(ASK, ("10.99.0.1", PORT))
        steps = []
        while beating.taken() < 7:
            before = beating.taken()
            lab.until(lambda taken=before: beating._look() > taken, what="some more")
            steps.append(beating.taken() - before)
        assert max(steps) == 2


@needs_root
def test_two_that_are_set_on_each_other_say_nothing(net: Net) -> None:
    """A forged question makes one collector answer the other, which is the end of it."""
    a, b, *_ = net
    with ExitStack() as stack:
        here, there = (stack.enter_context(Beating(ns)) for ns in (a, b))
        for sock in there.heart.sockets:
            if sock.family == socket.AF_INET:
                sock.sendto(ASK, ("10.99.0.1", PORT))
        here.take(1)
        there.take(1)
        assert (here.heart.answered, there.heart.answered, there.heart.ignored) == (1, 0, 1)


@needs_root
def test_answers_are_marked_and_only_the_address_asked_for_is_bound(net: Net) -> None:
    with Beating(net[0], f"10.99.0.3:{PORT}") as beating:
        (sock,) = beating.heart.sockets
        assert sock.getsockname() == ("10.99.0.3", PORT)
        assert sock.getsockopt(socket.SOL_SOCKET, libc.SO_MARK) == libc.TUNNEL_MARK


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("8998", (None, 8998)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:9", ("fe80::1%eth0", 9)),
    ],
)
def test_where(text: str, where: tuple[Any, int]) -> None:
    assert parse_where(text) == where


@pytest.mark.parametrize(
    "text",
    ["", ":", ":8998", "0", "65536", "-1", "x", "192.0.2.1", "192.0.2.1:", "host:8998", "::1:8998",
     "[192.0.2.1]:8998", "[::1]", "[]:8998", "8998 ", "٣"],
)  # fmt: skip
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError, match=r"--heartbeat .*: expected \[ADDR:\]PORT"):
        parse_where(text)


@needs_root
def test_a_port_in_use_and_an_address_elsewhere(net: Net) -> None:
    before = lab.descriptors()
    with Beating(net[0]), pytest.raises(UserError, match="UDP port 8998 is in use"):
        Beating(net[0])
    with pytest.raises(UserError, match=r"192\.0\.2\.9 is not an address of this host"):
        Beating(net[0], "192.0.2.9:8998")
    assert lab.left_open(before) == []


def test_the_option_reaches_listen(
    runner_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ListenOptions] = []
    monkeypatch.setattr(module, "listen", asked.append)
    collector = runner_of(cli.main, "collector")
    assert collector("listen", "--heartbeat", "[::1]:8998")[0] == 0
    assert collector("listen")[0] == 0
    assert [each.heartbeat for each in asked] == ["[::1]:8998", None]


@needs_root
def test_a_collector_answers_while_it_runs_and_closes_what_it_opened(net: Net) -> None:
    a, b, *_ = net
    before = lab.descriptors()
    wanted = Wanted(gre=False, ports={}, ip=[4], explicit=True)
    collector = lab.in_namespace(a, Collector, ListenOptions(wanted, heartbeat=str(PORT)))

    async def work(stack: ExitStack) -> None:
        task = asyncio.create_task(collector.run())
        sock = asker(b, stack, "10.99.0.2")
        sock.sendto(ASK, ("10.99.0.1", PORT))
        answers: list[tuple[bytes, str]] = []
        async with asyncio.timeout(10):
            while not answers:
                answers += received(sock)
                await asyncio.sleep(0.001)
        assert answers == [(ANSWER, "10.99.0.1")]
        collector._end("enough")
        await task

    with ExitStack() as stack:
        asyncio.run(work(stack))
    assert collector.ledger.received == 0  # heartbeats are no tunnels
    assert lab.left_open(before) == []


@needs_root
@pytest.mark.parametrize("options", [["--heartbeat", "x"], ["--heartbeat", "192.0.2.9:8998"]])
def test_mistakes_end_the_program_with_one_line(net: Net, options: list[str]) -> None:
    command = [sys.executable, "-m", "collector.cli", "listen", "--ip", "ipip", *options]
    done = subprocess.run(
        ["ip", "netns", "exec", net[0], *command], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == (2 if options[1] == "x" else 1)
    assert done.stderr.count("\n") == 1
