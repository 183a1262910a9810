"""Probes between namespaces: the kernel answers pings, tcpdump and plain sockets are the judges."""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_transmit import without_capabilities

import lab
from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, probe
from tunnelbridge.linux.probe import HeartbeatProbe, IcmpProbe, Probe, RouteProbe

V4, V6 = socket.AF_INET, socket.AF_INET6
Net = tuple[str, str, str, str]
FAMILIES = [(V4, "10.98.0.2"), (V6, "fd98::2")]
needs_root = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module")
def net(root: None) -> Iterator[Net]:
    with (
        lab.namespace(ipv6=True) as a,
        lab.namespace(ipv6=True) as b,
        lab.veth(a, b, "10.98.0.1/24", "10.98.0.2/24") as (end_a, end_b),
    ):
        for ns, end, address in ((a, end_a, "fd98::1/64"), (b, end_b, "fd98::2/64")):
            lab.run("ip", "-n", ns, "address", "add", address, "dev", end, "nodad")
        lab.run("ip", "-n", b, "address", "add", "10.98.0.3/24", "dev", end_b)
        yield a, b, end_a, end_b


def answers(asked: Probe, seconds: float = 2.0, count: int = 1) -> list[bytes]:
    """Return what a probe receives, as soon as it is ``count`` answers, or when time is over."""
    found: list[bytes] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and (left := deadline - time.monotonic()) > 0:
        if select.select([asked], [], [], left)[0]:
            found += asked.receive()
    return found


@pytest.fixture(params=[IcmpProbe, HeartbeatProbe])
def kind(request: pytest.FixtureRequest) -> type[IcmpProbe | HeartbeatProbe]:
    return request.param  # type: ignore[no-any-return]


class Far:
    """A UDP socket at the member's that answers heartbeats as a test likes."""

    def __init__(self, ns: str, ip: str, port: int = 0) -> None:
        family = V6 if ":" in ip else V4
        self.sock = lab.in_namespace(ns, socket.socket, family, socket.SOCK_DGRAM)
        self.sock.settimeout(2)
        self.sock.bind((ip, port))
        self.port: int = self.sock.getsockname()[1]

    def take(self) -> tuple[bytes, tuple[str, int]]:
        octets, source = self.sock.recvfrom(2048)
        return octets, source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@needs_root
@pytest.mark.parametrize(("family", "ip"), FAMILIES)
def test_the_kernel_answers_echoes(net: Net, family: socket.AddressFamily, ip: str) -> None:
    with ExitStack() as stack:
        pinger = lab.in_namespace(net[0], IcmpProbe, family)
        stack.callback(pinger.close)
        nonces = [pinger.send(ip) for _ in range(5)]
        assert len(set(nonces)) == 5
        assert sorted(answers(pinger, count=5)) == sorted(nonces)
        assert pinger.receive() == []


@needs_root
@pytest.mark.parametrize(("family", "ip"), FAMILIES)
def test_a_link_local_or_second_address_answers(
    net: Net, family: socket.AddressFamily, ip: str
) -> None:
    a, b, end_a, end_b = net
    other = "10.98.0.3"
    spelled = ip
    if family == V6:
        spelled = "FD98:0:0::0002"
        told = lab.run("ip", "-n", b, "-o", "-6", "address", "show", "dev", end_b, "scope", "link")
        other = told.split()[3].partition("/")[0] + f"%{end_a}"

    def ask() -> list[bytes]:
        pinger = IcmpProbe(family)
        try:
            nonces = [pinger.send(other), pinger.send(spelled)]
            assert sorted(answers(pinger, count=2)) == sorted(nonces)
        finally:
            pinger.close()
        return nonces

    assert lab.in_namespace(a, ask)


@needs_root
@pytest.mark.parametrize(("family", "ip"), FAMILIES)
def test_without_rights_a_ping_socket_does(net: Net, family: socket.AddressFamily, ip: str) -> None:
    a = net[0]
    group_range = "/proc/sys/net/ipv4/ping_group_range"
    lab.in_namespace(a, Path(group_range).write_text, "1 0")
    refused = lab.in_namespace(a, without_capabilities, lambda: IcmpProbe(family))
    assert isinstance(refused, UserError)
    assert "CAP_NET_RAW" in str(refused)
    assert "ping_group_range" in str(refused)
    lab.in_namespace(a, Path(group_range).write_text, "0 2147483647")
    pinger = lab.in_namespace(a, without_capabilities, lambda: IcmpProbe(family))
    assert isinstance(pinger, IcmpProbe)
    with ExitStack() as stack:
        stack.callback(pinger.close)
        assert not pinger._is_raw
        nonces = [pinger.send(ip), pinger.send(ip)]
        assert sorted(answers(pinger, count=2)) == sorted(nonces)


@needs_root
@pytest.mark.parametrize(("family", "ip"), FAMILIES)
def test_pings_of_other_programs_do_not_even_wake_it(
    net: Net, family: socket.AddressFamily, ip: str
) -> None:
    a = net[0]
    with ExitStack() as stack:
        pinger, other = (lab.in_namespace(a, IcmpProbe, family) for _ in range(2))
        stack.callback(pinger.close)
        stack.callback(other.close)
        other._identifier = pinger._identifier ^ 1
        assert "3 received" in lab.run("ping", "-c3", "-i0.01", ip, ns=a)
        assert select.select([pinger], [], [], 0)[0] == []
        nonce = pinger.send(ip)
        other.send(ip)
        assert answers(pinger) == [nonce]
        assert select.select([pinger], [], [], 0.1)[0] == []


@needs_root
@pytest.mark.parametrize(("family", "ip"), FAMILIES)
def test_the_same_identifier_by_chance_is_told_by_the_nonce(
    net: Net, family: socket.AddressFamily, ip: str
) -> None:
    with ExitStack() as stack:
        pinger, other = (lab.in_namespace(net[0], IcmpProbe, family) for _ in range(2))
        stack.callback(pinger.close)
        stack.callback(other.close)
        other._identifier = pinger._identifier
        other.send(ip)
        assert select.select([pinger], [], [], 2)[0]
        assert pinger.receive() == []
        nonce = pinger.send(ip)
        assert answers(pinger) == [nonce]


@needs_root
def test_late_answers_and_answers_of_others_do_not_count(net: Net) -> None:
    a, b, *_ = net
    with ExitStack() as stack:
        asker = lab.in_namespace(a, HeartbeatProbe, V4)
        stack.callback(asker.close)
        far = stack.enter_context(Far(b, "10.98.0.2"))
        other = stack.enter_context(Far(b, "10.98.0.3", far.port))
        nonce = asker.send("10.98.0.2", far.port)
        question, source = far.take()
        answer = probe.answer_to(question)
        other.sock.sendto(answer, source)  # right nonce, wrong address
        with Far(b, "10.98.0.2") as elsewhere:
            elsewhere.sock.sendto(answer, source)  # wrong port
        far.sock.sendto(question, source)  # an echo that is no answer
        far.sock.sendto(answer[:15], source)
        far.sock.sendto(answer[:8] + bytes(8), source)  # wrong nonce
        assert answers(asker, 0.2) == []
        far.sock.sendto(answer, source)
        assert answers(asker) == [nonce]
        far.sock.sendto(answer, source)  # once is enough
        assert answers(asker, 0.1) == []
        asker.forget(asker.send("10.98.0.2", far.port))
        question, source = far.take()
        far.sock.sendto(probe.answer_to(question), source)
        assert answers(asker, 0.1) == []


@needs_root
def test_icmp_answers_of_other_addresses_do_not_count(net: Net) -> None:
    """Raw ICMP from a second address of the member: right in all but where it is from."""
    a, b, *_ = net
    with ExitStack() as stack:
        pinger = lab.in_namespace(a, IcmpProbe, V4)
        stack.callback(pinger.close)
        nonce = pinger.send("10.98.0.9")  # nobody's
        reply = struct.pack("!BBHHH8s", 0, 0, 0, pinger._identifier, 1, nonce)
        reply = reply[:2] + probe._checksum(reply).to_bytes(2) + reply[4:]
        raw = lab.in_namespace(b, socket.socket, V4, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        stack.enter_context(raw)
        raw.bind(("10.98.0.3", 0))
        raw.sendto(reply, ("10.98.0.1", 0))
        assert select.select([pinger], [], [], 2)[0]  # it passes the filter
        assert pinger.receive() == []
        nonce = pinger.send("10.98.0.3")
        assert answers(pinger) == [nonce]


@needs_root
def test_probes_are_marked(net: Net) -> None:
    """Nftables, which sees the marks of what the kernel sends, counts them."""
    lab.need("nft")
    a = net[0]
    kinds = ("icmp type echo-request", "icmpv6 type echo-request", "udp dport { 9, 8998 }")
    counters = " ".join(f"meta mark {libc.TUNNEL_MARK:#x} {kind} counter;" for kind in kinds)
    rules = f"table inet t {{ chain c {{ type filter hook output priority 0; {counters} }}; }}"
    lab.run("nft", rules, ns=a)
    try:
        with ExitStack() as stack:
            for family, ip in FAMILIES:
                for made, port in ((IcmpProbe, 0), (HeartbeatProbe, 8998)):
                    asker = lab.in_namespace(a, made, family)
                    stack.callback(asker.close)
                    asker.send(ip, port)
                lab.in_namespace(a, probe._discard, ip)
        counted = lab.run("nft", "list", "table", "inet", "t", ns=a)
        assert re.findall(r"counter packets (\d+)", counted) == ["1", "1", "4"], counted
    finally:
        lab.run("nft", "delete", "table", "inet", "t", ns=a)


@needs_root
def test_sending_where_no_route_is_raises_and_nothing_waits(
    net: Net, kind: type[IcmpProbe | HeartbeatProbe]
) -> None:
    asker = lab.in_namespace(net[0], kind, V4)
    try:
        with pytest.raises(OSError, match="Network is unreachable"):
            asker.send("203.0.113.1", 9)
        assert asker._asked == {}
    finally:
        asker.close()


@needs_root
def test_route_probe_reads_what_ip_says(net: Net) -> None:
    a, _, end_a, _ = net
    check = RouteProbe().check

    def state(ip: str) -> str:
        return lab.run("ip", "-n", a, "neigh", "show", ip, "dev", end_a)

    assert lab.in_namespace(a, check, "127.0.0.1") == ""
    assert lab.in_namespace(a, check, "203.0.113.1") == "no route to 203.0.113.1"
    for ip, gone in (("10.98.0.2", "10.98.0.9"), ("fd98::2", "fd98::9")):
        lab.run("ip", "-n", a, "neigh", "flush", "dev", end_a)
        assert lab.in_namespace(a, check, ip) == ""
        assert state(ip) == ""  # nothing was sent to find that out
        lab.run("ping", "-c1", "-W2", ip, ns=a)
        assert lab.in_namespace(a, check, ip) == ""
        lab.run("ip", "-n", a, "neigh", "add", gone, "dev", end_a, "nud", "failed")
        lab.until(lambda address=gone: "FAILED" in state(address), what="a failed neighbour")
        why = lab.in_namespace(a, check, gone)
        assert why == f"next hop {gone} on {end_a} does not answer"
        assert "FAILED" not in state(gone)  # it is being looked up again
        assert lab.in_namespace(a, check, gone) == why  # which is no answer yet


@needs_root
@pytest.mark.parametrize("kind_of_route", ["unreachable", "blackhole", "prohibit"])
def test_routes_that_lead_nowhere(net: Net, kind_of_route: str) -> None:
    a = net[0]
    lab.run("ip", "-n", a, "route", "add", kind_of_route, "198.51.100.0/24")
    try:
        why = lab.in_namespace(a, RouteProbe().check, "198.51.100.1")
    finally:
        lab.run("ip", "-n", a, "route", "delete", "198.51.100.0/24")
    assert why.startswith("no route to 198.51.100.1")


def test_the_format_of_a_heartbeat() -> None:
    asker = HeartbeatProbe(V4)
    try:
        question = asker._question(b"12345678")
    finally:
        asker.close()
    assert question == b"tbhb\x01\x01\x00\x0012345678"
    assert probe.answer_to(question) == b"tbhb\x01\x02\x00\x0012345678"
    assert probe.is_heartbeat(question + bytes(48), probe.ASKS)
    assert not probe.is_heartbeat(question + bytes(49), probe.ASKS)


@given(st.integers(0, 7), st.integers(1, 255), st.binary(max_size=48))
def test_an_octet_that_differs_makes_it_foreign(place: int, flips: int, padding: bytes) -> None:
    question = b"tbhb\x01\x01\x00\x0012345678" + padding
    assert probe.is_heartbeat(question, probe.ASKS)
    assert not probe.is_heartbeat(question, probe.ANSWERS)
    changed = question[:place] + bytes([question[place] ^ flips]) + question[place + 1 :]
    assert not probe.is_heartbeat(changed, probe.ASKS)
    for length in range(16):
        assert not probe.is_heartbeat(question[:length], probe.ASKS)


@given(st.binary(min_size=2, max_size=64).filter(lambda octets: len(octets) % 2 == 0))
def test_the_checksum_is_scapys(octets: bytes) -> None:
    from scapy.utils import checksum

    assert probe._checksum(octets) == checksum(octets)
