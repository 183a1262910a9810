"""Members that vanish and come back, seen by the real kernel between two namespaces."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop

import lab
from tunnelbridge import console
from tunnelbridge.errors import UserError
from tunnelbridge.health import HealthMonitor

pytestmark = pytest.mark.usefixtures("root")

Net = tuple[str, str, str, str]
PORT = 8998


@dataclass(frozen=True)
class Settings:
    check: str = "icmp"
    interval: float = 0.03
    timeout: float = 0.2
    fall: int = 3
    rise: int = 2
    port: int = PORT


class Watch:
    """What a monitor told, to be waited for."""

    def __init__(self) -> None:
        self.told: list[tuple[Hashable, bool, str]] = []

    def __call__(self, key: Hashable, up: bool, why: str) -> None:
        self.told.append((key, up, why))

    async def until(self, count: int) -> tuple[Hashable, bool, str]:
        await until(lambda: len(self.told) >= count)
        return self.told[count - 1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - told by plain callbacks
            await asyncio.sleep(0.005)


@pytest.fixture
def net(root: None) -> Iterator[Net]:
    """Two namespaces and a cable: (ours, the member's, our end, the member's end)."""
    with (
        lab.namespace(ipv6=True) as a,
        lab.namespace(ipv6=True) as b,
        lab.veth(a, b, "10.97.0.1/24", "10.97.0.2/24") as (end_a, end_b),
    ):
        for ns, end, address in ((a, end_a, "fd97::1/64"), (b, end_b, "fd97::2/64")):
            lab.run("ip", "-n", ns, "address", "add", address, "dev", end, "nodad")
        yield a, b, end_a, end_b


def run(ns: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` on a uvloop in a namespace."""
    lab.in_namespace(ns, lambda: uvloop.run(work()))


def address(net: Net, verb: str, *addresses: str) -> None:
    """Add or delete addresses of the member."""
    _, b, _, end_b = net
    for each in addresses:
        nodad = ["nodad"] if ":" in each and verb == "add" else []
        lab.run("ip", "-n", b, "address", verb, each, "dev", end_b, *nodad)


@pytest.mark.parametrize(
    ("ip", "prefix"), [("10.97.0.2", "10.97.0.2/24"), ("fd97::2", "fd97::2/64")]
)
def test_icmp_down_after_fall_probes_and_up_after_rise(net: Net, ip: str, prefix: str) -> None:
    counting = Watch()

    async def work() -> None:
        monitor = HealthMonitor([("m", ip, Settings())], counting)
        probes = _count_probes(monitor)
        monitor.start()
        await until(lambda: probes.count(True) >= 3)
        assert monitor.is_up("m")
        assert counting.told == []
        address(net, "delete", prefix)
        assert await counting.until(1) == ("m", False, "no answer within 0.2 s")
        assert not monitor.is_up("m")
        assert probes[-3:] == [False] * 3
        assert probes[-4] is True
        address(net, "add", prefix)
        assert await counting.until(2) == ("m", True, "")
        assert probes[-2:] == [True] * 2
        assert probes[-3] is False
        monitor.close()

    run(net[0], work)


def _count_probes(monitor: HealthMonitor) -> list[bool]:
    """Record the outcome of each probe."""
    outcomes: list[bool] = []
    probe = monitor._probe

    async def recorded(member: Any) -> str:
        why = await probe(member)
        outcomes.append(not why)
        return why

    monitor._probe = recorded  # type: ignore[method-assign]
    return outcomes


def test_only_the_member_that_vanished_goes_down(net: Net) -> None:
    address(net, "add", "10.97.0.3/24", "10.97.0.4/24")
    watch = Watch()
    ips = ["10.97.0.2", "10.97.0.3", "10.97.0.4", "fd97::2"]

    async def work() -> None:
        monitor = HealthMonitor([(ip, ip, Settings()) for ip in ips], watch)
        monitor.start()
        address(net, "delete", "10.97.0.3/24")
        assert (await watch.until(1))[:2] == ("10.97.0.3", False)
        await asyncio.sleep(0.2)
        assert [monitor.is_up(ip) for ip in ips] == [True, False, True, True]
        assert len(monitor._askers) == 2  # a socket a family, not a member
        monitor.close()

    run(net[0], work)
    assert len(watch.told) == 1


def test_no_route_is_a_reason(net: Net) -> None:
    watch = Watch()

    async def work() -> None:
        targets = [("icmp", "203.0.113.1", Settings()), ("r", "203.0.113.1", Settings("route"))]
        monitor = HealthMonitor(targets, watch)
        monitor.start()
        await watch.until(2)
        monitor.close()

    run(net[0], work)
    assert sorted(watch.told) == [
        ("icmp", False, "Network is unreachable"),
        ("r", False, "no route to 203.0.113.1"),
    ]


def test_route_follows_the_next_hop(net: Net) -> None:
    """A neighbour that no longer answers ARP is down, and is asked again by itself."""
    watch = Watch()
    a, _, end_a, _ = net
    lab.run("ip", "-n", a, "route", "add", "203.0.113.0/24", "via", "10.97.0.2")
    lab.run("ip", "netns", "exec", a, "sysctl", "-qw", f"net.ipv4.neigh.{end_a}.retrans_time_ms=20")

    async def work() -> None:
        monitor = HealthMonitor([("m", "203.0.113.1", Settings("route"))], watch)
        monitor.start()
        lab.run("ping", "-c1", "-W1", "203.0.113.1", ns=a, check=False)
        await asyncio.sleep(0.3)
        assert watch.told == []
        address(net, "delete", "10.97.0.2/24")
        lab.run("ip", "-n", a, "neigh", "flush", "dev", end_a)
        lab.run("ping", "-c1", "-W1", "203.0.113.1", ns=a, check=False)  # as a clone would
        down = await watch.until(1)
        assert down == ("m", False, f"next hop 10.97.0.2 on {end_a} does not answer")
        await asyncio.sleep(0.3)
        assert len(watch.told) == 1  # looking again is not being up
        address(net, "add", "10.97.0.2/24")
        assert await watch.until(2) == ("m", True, "")
        monitor.close()

    run(a, work)


def test_route_down_while_the_interface_is(net: Net) -> None:
    watch = Watch()
    a, _, end_a, _ = net

    async def work() -> None:
        monitor = HealthMonitor([("m", "10.97.0.2", Settings("route"))], watch)
        monitor.start()
        lab.run("ip", "-n", a, "link", "set", end_a, "down")
        assert await watch.until(1) == ("m", False, "no route to 10.97.0.2")
        lab.run("ip", "-n", a, "link", "set", end_a, "up")
        assert await watch.until(2) == ("m", True, "")
        monitor.close()

    run(a, work)


@pytest.mark.parametrize("ip", ["10.97.0.2", "fd97::2"])
def test_heartbeat_of_a_real_collector(net: Net, ip: str) -> None:
    watch = Watch()
    a, b, *_ = net

    async def work() -> None:
        with ExitStack() as stack:
            collector = _collector(b, stack)
            monitor = HealthMonitor([("m", ip, Settings("heartbeat"))], watch)
            stack.callback(monitor.close)
            outcomes = _count_probes(monitor)
            monitor.start()
            await until(lambda: outcomes.count(True) >= 3)
            assert watch.told == []
            _stop(collector)
            assert await watch.until(1) == ("m", False, "no answer within 0.2 s")
            _collector(b, stack)
            assert await watch.until(2) == ("m", True, "")

    run(a, work)


def test_update_keeps_the_state_of_who_stays(net: Net) -> None:
    watch = Watch()
    gone, there = ("gone", "10.97.0.9"), ("there", "10.97.0.2")

    async def work() -> None:
        monitor = HealthMonitor([(*gone, Settings(timeout=0.05))], watch)
        monitor.start()
        await watch.until(1)
        outcomes = _count_probes(monitor)
        monitor.update([(*gone, Settings(timeout=0.05)), (*there, Settings())])
        await until(lambda: outcomes.count(True) >= 1)
        assert [monitor.is_up(key) for key in ("gone", "there")] == [False, True]
        with pytest.raises(UserError, match="not an IP address"):
            monitor.update([("bad", "nowhere", Settings())])
        assert not monitor.is_up("gone")
        monitor.update([(*gone, Settings(fall=9, timeout=0.05)), (*there, Settings("off"))])
        assert monitor.is_up("gone")  # it is judged anew
        assert list(monitor._members) == ["gone"]
        await watch.until(2)
        (asker,) = monitor._askers.values()
        assert len(asker.probe._asked) <= 1  # what was not answered in time is forgotten
        assert len(asker.waiting) <= 1
        monitor.update([])
        outcomes.clear()
        await asyncio.sleep(0.15)
        assert outcomes == []
        monitor.close()

    run(net[0], work)
    assert watch.told == [("gone", False, "no answer within 0.05 s")] * 2


def test_off_asks_nobody_and_is_up(net: Net) -> None:
    async def work() -> None:
        monitor = HealthMonitor([("m", "203.0.113.1", Settings("off"))], Watch())
        monitor.start()
        assert monitor.is_up("m")
        assert (monitor._members, monitor._askers) == ({}, {})
        monitor.close()

    run(net[0], work)


def test_a_bug_in_the_callback_reaches_the_loop(net: Net) -> None:
    bugs: list[object] = []

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: bugs.append(context["exception"]))
        monitor = HealthMonitor([("m", "203.0.113.1", Settings())], fail)
        monitor.start()
        await until(lambda: bool(bugs))
        monitor.close()

    run(net[0], work)
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]


def test_nothing_is_left_open_and_changes_are_logged(
    net: Net, capsys: pytest.CaptureFixture[str]
) -> None:
    console.configure_logging(verbose=False)
    before = lab.descriptors()
    checks = ("icmp", "heartbeat", "route")
    ips = ("10.97.0.9", "fd97::9")

    async def work() -> None:
        targets = [((c, ip), ip, Settings(c, timeout=0.05)) for c in checks for ip in ips]
        watch = Watch()
        monitor = HealthMonitor(targets, watch)
        monitor.start()
        await watch.until(6)
        monitor.close()

    run(net[0], work)
    assert lab.left_open(before) == []
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = {(line["check"], line["member"]) for line in lines}
    assert told == {(check, ip) for check in checks for ip in ips}
    assert {line["event"] for line in lines} == {"member is down"}
    assert len(lines) == len(told)


def test_many_members_cost_little(net: Net) -> None:
    """A hundred members on one socket; none is taken for another."""
    ips = [f"127.0.1.{number}" for number in range(1, 101)]

    async def work() -> None:
        watch = Watch()
        monitor = HealthMonitor([(ip, ip, Settings(interval=0.1)) for ip in ips], watch)
        outcomes = _count_probes(monitor)
        monitor.start()
        await until(lambda: len(outcomes) >= 300)
        assert watch.told == []
        assert all(outcomes)
        monitor.close()

    run(net[0], work)


def _collector(ns: str, stack: ExitStack) -> subprocess.Popen[str]:
    """Start ``collector listen --heartbeat``; wait until it listens."""
    command = [sys.executable, "-m", "collector.cli", "listen", "--vxlan", "4789"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", ns, *command, "--heartbeat", str(PORT)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    stack.callback(_stop, process)
    assert process.stderr is not None
    for line in process.stderr:
        if '"listening"' in line:
            return process
    raise AssertionError("the collector did not start")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
