"""Links, routes and link events; ``ip -j`` is the judge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import lab
from tunnelbridge.errors import UserError
from tunnelbridge.linux import netlink
from tunnelbridge.linux.links import LinkEvent, LinkMonitor
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.netlink import link, route

pytestmark = pytest.mark.usefixtures("root")


def ip(ns: str, *arguments: str) -> Any:
    return json.loads(lab.run("ip", "-n", ns, "-j", *arguments))


@pytest.fixture
def net(root: None) -> Iterator[tuple[str, str, str, str]]:
    """Two namespaces and a cable: (a, b, a's end, b's end)."""
    with (
        lab.namespace(ipv6=True) as a,
        lab.namespace(ipv6=True) as b,
        lab.veth(a, b, "10.94.0.1/24", "10.94.0.2/24", mtu=1450) as (end_a, end_b),
    ):
        for ns, end, address in ((a, end_a, "fd94::1/64"), (b, end_b, "fd94::2/64")):
            lab.run("ip", "-n", ns, "address", "add", address, "dev", end, "nodad")
        yield a, b, end_a, end_b


def test_link_facts_are_those_of_ip(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net
    lab.run("ip", "-n", a, "link", "add", "down0", "type", "bridge")
    kinds = {"ether": 1, "loopback": 772}
    for name in ("lo", end_a, "down0"):
        found = lab.in_namespace(a, link, name)
        (told,) = ip(a, "link", "show", "dev", name)
        assert found == netlink.Link(
            index=told["ifindex"],
            name=name,
            mtu=told["mtu"],
            mac=bytes.fromhex(told["address"].replace(":", "")),
            kind=kinds[told["link_type"]],
            up="UP" in told["flags"],
        )
    assert not lab.in_namespace(a, link, "down0").up


def test_a_link_without_link_address_has_no_mac(net: tuple[str, str, str, str]) -> None:
    a, *_ = net
    lab.run("ip", "-n", a, "tuntap", "add", "dev", "tun7", "mode", "tun")
    found = lab.in_namespace(a, link, "tun7")
    assert (found.mac, found.kind) == (b"", 65534)


@pytest.mark.parametrize("name", ["nope0", "", "much-longer-than-interfaces-may-be", "a/b"])
def test_a_missing_link_names_those_there_are(net: tuple[str, str, str, str], name: str) -> None:
    a, _, end_a, _ = net
    with pytest.raises(UserError) as caught:
        lab.in_namespace(a, link, name)
    assert str(caught.value) == f"no interface named {name} (there are: lo, {end_a})"


@pytest.mark.parametrize(
    ("remote", "source", "gateway"),
    [
        ("10.94.0.2", "10.94.0.1", None),
        ("fd94::2", "fd94::1", None),
        ("10.93.7.7", "10.94.0.1", "10.94.0.2"),
        ("2001:db8::7", "fd94::1", "fd94::2"),
    ],
)
def test_a_route_is_that_of_ip_with_the_neighbours_mac(
    net: tuple[str, str, str, str], remote: str, source: str, gateway: str | None
) -> None:
    a, b, end_a, end_b = net
    lab.run("ip", "-n", a, "route", "add", "10.93.0.0/16", "via", "10.94.0.2")
    lab.run("ip", "-n", a, "route", "add", "2001:db8::/32", "via", "fd94::2")
    found = lab.in_namespace(a, route, remote)
    (told,) = ip(a, "route", "get", remote)
    assert (told["dev"], told["prefsrc"], told.get("gateway")) == (end_a, source, gateway)
    index = ip(a, "link", "show", "dev", end_a)[0]["ifindex"]
    assert found == netlink.Route(remote, end_a, index, source, gateway, 1450, None)

    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    with lab.in_namespace(a, socket.socket, family, socket.SOCK_DGRAM) as probe:
        probe.sendto(b"x", (remote, 9))  # makes the kernel resolve the next hop
        mac = ip(b, "link", "show", "dev", end_b)[0]["address"]
        lab.until(lambda: lab.in_namespace(a, route, remote).next_hop_mac == mac, what="resolving")


def test_a_neighbour_that_does_not_answer_has_no_mac(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net
    lab.run("ip", "-n", a, "neighbour", "add", "10.94.0.10", "dev", end_a,
            "lladdr", "02:00:00:00:00:0a", "nud", "permanent")  # fmt: skip
    add = ("ip", "-n", a, "neighbour", "replace", "10.94.0.9", "dev", end_a)
    lab.run(*add, "lladdr", "02:00:00:00:00:09", "nud", "failed")
    assert lab.in_namespace(a, route, "10.94.0.9").next_hop_mac is None
    lab.run(*add, "lladdr", "02:00:00:00:00:09", "nud", "permanent")
    assert lab.in_namespace(a, route, "10.94.0.9").next_hop_mac == "02:00:00:00:00:09"


def test_the_same_neighbour_on_another_link_is_not_meant(net: tuple[str, str, str, str]) -> None:
    a, *_ = net
    lab.run("ip", "-n", a, "link", "add", "br7", "type", "bridge")
    lab.run("ip", "-n", a, "link", "set", "br7", "up")
    lab.run("ip", "-n", a, "neighbour", "add", "10.94.0.8", "dev", "br7",
            "lladdr", "02:00:00:00:00:08", "nud", "permanent")  # fmt: skip
    assert lab.in_namespace(a, route, "10.94.0.8").next_hop_mac is None


def test_the_routes_own_mtu_counts(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net
    lab.run("ip", "-n", a, "route", "add", "10.94.0.2", "dev", end_a, "mtu", "1300")
    assert lab.in_namespace(a, route, "10.94.0.2").mtu == 1300
    assert lab.in_namespace(a, route, "10.94.0.3").mtu == 1450


def test_an_ipv6_gateway_of_an_ipv4_route(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net
    lab.run("ip", "-n", a, "route", "add", "10.92.0.0/16", "via", "inet6", "fd94::2", "dev", end_a)
    lab.run("ip", "-n", a, "neighbour", "replace", "fd94::2", "dev", end_a,
            "lladdr", "02:00:00:00:00:02", "nud", "permanent")  # fmt: skip
    found = lab.in_namespace(a, route, "10.92.0.1")
    assert (found.gateway, found.next_hop_mac) == ("fd94::2", "02:00:00:00:00:02")


def test_a_link_local_remote_keeps_its_interface(net: tuple[str, str, str, str]) -> None:
    a, b, end_a, _ = net
    with lab.veth(a, b) as (second, _):
        for end in (end_a, second):
            found = lab.in_namespace(a, route, f"fe80::77%{end}")
            assert (found.interface, found.gateway) == (end, None)


@pytest.mark.parametrize("remote", ["10.94.0.1", "fd94::1"])
def test_ourselves_is_reached_by_loopback(net: tuple[str, str, str, str], remote: str) -> None:
    a, *_ = net
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    with lab.in_namespace(a, socket.socket, family, socket.SOCK_DGRAM) as probe:
        probe.sendto(b"x", (remote, 9))  # leaves a neighbour with a link address of zeros
    found = lab.in_namespace(a, route, remote)
    assert (found.interface, found.next_hop_mac) == ("lo", None)


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        ("198.51.100.7", "^no route to 198.51.100.7$"),
        ("2001:db8::7", "^no route to 2001:db8::7$"),
        ("10.91.0.1", r"^no route to 10.91.0.1 \(No route to host\)$"),
        ("pool.example", "'pool.example' is not an IP address"),
    ],
)
def test_no_route_is_one_clear_line(
    net: tuple[str, str, str, str], remote: str, message: str
) -> None:
    a, *_ = net
    lab.run("ip", "-n", a, "route", "add", "unreachable", "10.91.0.0/16")
    with pytest.raises(UserError, match=message):
        lab.in_namespace(a, route, remote)


def test_in_thread_hands_back_results_and_errors() -> None:
    assert in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0)


class Events:
    """A monitor in a namespace whose events tests wait for."""

    def __init__(self, ns: str) -> None:
        self.queue: queue.Queue[LinkEvent] = queue.Queue()
        self.seen: list[LinkEvent] = []
        self.monitor = LinkMonitor(self.queue.put)
        lab.in_namespace(ns, self.monitor.start)

    def wait_for(self, name: str, **wanted: object) -> LinkEvent:
        deadline = time.monotonic() + 5
        while True:
            event = self.queue.get(timeout=max(deadline - time.monotonic(), 0.001))
            self.seen.append(event)
            if event.name == name and all(getattr(event, k) == v for k, v in wanted.items()):
                return event


@contextlib.contextmanager
def events(ns: str) -> Iterator[Events]:
    watching = Events(ns)
    try:
        yield watching
    finally:
        watching.monitor.close()


def test_links_that_come_change_and_go_are_told(net: tuple[str, str, str, str]) -> None:
    a, *_ = net
    with events(a) as watching:
        lab.run("ip", "-n", a, "link", "add", "br0", "type", "bridge")
        added = watching.wait_for("br0", present=True, up=False)
        assert added.index == ip(a, "link", "show", "dev", "br0")[0]["ifindex"]
        lab.run("ip", "-n", a, "link", "set", "br0", "up")
        watching.wait_for("br0", present=True, up=True, index=added.index)
        lab.run("ip", "-n", a, "link", "set", "br0", "down")
        watching.wait_for("br0", present=True, up=False)
        lab.run("ip", "-n", a, "link", "delete", "br0")
        watching.wait_for("br0", present=False, up=False, index=added.index)
        lab.run("ip", "-n", a, "link", "add", "br0", "type", "bridge")
        again = watching.wait_for("br0", present=True)
        assert again.index != added.index


def test_a_move_to_another_namespace_is_an_end(net: tuple[str, str, str, str]) -> None:
    a, b, end_a, _ = net
    with events(a) as watching:
        lab.run("ip", "-n", a, "link", "set", end_a, "netns", b)
        watching.wait_for(end_a, present=False)
        lab.run("ip", "-n", b, "link", "set", end_a, "netns", a)
        watching.wait_for(end_a, present=True)


def test_a_renamed_link_is_gone_under_its_old_name(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net
    lab.run("ip", "-n", a, "link", "set", end_a, "down")
    with events(a) as watching:
        lab.run("ip", "-n", a, "link", "set", end_a, "name", "renamed0")
        old = watching.wait_for(end_a, present=False)
        watching.wait_for("renamed0", present=True, index=old.index)
        lab.run("ip", "-n", a, "link", "set", "renamed0", "name", end_a)
        watching.wait_for(end_a, present=True)


def test_leaving_a_bridge_is_not_the_end_of_a_link(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net
    with events(a) as watching:
        lab.run("ip", "-n", a, "link", "add", "br0", "type", "bridge")
        lab.run("ip", "-n", a, "link", "set", end_a, "master", "br0")
        lab.run("ip", "-n", a, "link", "set", end_a, "nomaster")
        lab.run("ip", "-n", a, "link", "delete", "br0")
        watching.wait_for("br0", present=False)
    assert not [event for event in watching.seen if event.name == end_a and not event.present]


def test_closing_is_quick_final_and_repeatable(net: tuple[str, str, str, str]) -> None:
    a, *_ = net
    watching = Events(a)
    thread = watching.monitor._thread
    assert thread is not None
    began = time.monotonic()
    watching.monitor.close()
    watching.monitor.close()
    assert time.monotonic() - began < 1
    assert not thread.is_alive()
    lab.run("ip", "-n", a, "link", "add", "br0", "type", "bridge")
    assert watching.queue.empty()
    LinkMonitor(print).close()  # never started


def test_all_of_it_works_beside_a_running_uvloop(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net

    async def main() -> LinkEvent:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uvloop.Loop)
        arrived: asyncio.Queue[LinkEvent] = asyncio.Queue()
        monitor = LinkMonitor(lambda event: loop.call_soon_threadsafe(arrived.put_nowait, event))
        lab.in_namespace(a, monitor.start)
        try:
            assert lab.in_namespace(a, link, end_a).name == end_a
            assert lab.in_namespace(a, route, "10.94.0.2").interface == end_a
            assert link("lo").name == "lo"  # called from the loop's own thread
            lab.run("ip", "-n", a, "link", "set", end_a, "down")
            while True:
                event = await asyncio.wait_for(arrived.get(), 5)
                if event.name == end_a and not event.up:
                    return event
        finally:
            monitor.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()).present


def test_no_file_descriptor_is_left_open(net: tuple[str, str, str, str]) -> None:
    a, _, end_a, _ = net
    lab.in_namespace(a, link, end_a)
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(5):
        lab.in_namespace(a, link, end_a)
        lab.in_namespace(a, route, "10.94.0.2")
        Events(a).monitor.close()
    assert len(sorted(Path("/proc/self/fd").iterdir())) == len(before)
